import copy
import io
import json
import os
import subprocess
import sys
import time
from urllib.parse import unquote

import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError
from urllib3 import HTTPResponse

from studio.cloud import NETWORK_ACTIONS, ROLE_NAME, ROOT, CloudError, connect, policy, public_s3

MAY_NAME_NO_RESOURCE = {
    "ecr:GetAuthorizationToken",
    "cloudwatch:PutMetricData",
    *(f"ec2:{action}" for action in NETWORK_ACTIONS),
}


def run_python(source, environment, folder):
    """Run a program in an environment without any AWS settings but those given."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    nobody = {
        "HOME": str(folder),
        "AWS_CONFIG_FILE": str(folder / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none"),
    }
    return subprocess.run(
        [sys.executable, "-c", source],
        cwd=ROOT,
        env={**kept, **nobody, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


REFUSED = """
from studio.cloud import CloudError, connect
try:
    connect({where!r})
except CloudError as error:
    print(error)
"""


def test_another_place_is_refused_by_name():
    with pytest.raises(CloudError, match=r"WHERE must be .local. or .aws., not 'moon'"):
        connect("moon")


def test_aws_without_a_region_says_what_to_set(tmp_path):
    done = run_python(REFUSED.format(where="aws"), {}, tmp_path)
    assert done.stdout.startswith("No AWS region is set; `export AWS_DEFAULT_REGION="), done.stderr


def test_aws_without_credentials_says_so_at_once(tmp_path):
    without = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": "eu-west-1"}
    started = time.monotonic()
    done = run_python(REFUSED.format(where="aws"), without, tmp_path)
    assert time.monotonic() - started < 60
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith("No usable AWS credentials (Unable to locate credentials")
    assert "aws configure" in done.stdout


def test_aws_is_not_mistaken_for_the_local_cloud(tmp_path):
    pointed = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_DEFAULT_REGION": "eu-west-1"}
    done = run_python(REFUSED.format(where="aws"), pointed, tmp_path)
    assert done.stdout.startswith("AWS_ENDPOINT_URL points to http://127.0.0.1:9, not to AWS")


def test_neither_a_profile_of_a_real_account_nor_a_proxy_comes_between(cloud, tmp_path):
    source = "from studio.cloud import connect\nprint(connect('local').describe())"
    foreign = {"AWS_PROFILE": "work", "AWS_SESSION_TOKEN": "foreign"}
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY"), "http://127.0.0.1:9")
    done = run_python(source, {**foreign, **proxies}, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "this machine (local_cloud)" in done.stdout


def test_connecting_again_finds_the_same_cloud(cloud):
    again = connect("local")
    assert (again.bucket, again.role, again.region) == (cloud.bucket, cloud.role, cloud.region)
    endpoints = {c.client("s3").meta.endpoint_url for c in (again, cloud)}
    assert len(endpoints) == 1


def test_the_bucket_is_there_and_a_run_has_its_own_place_in_it(cloud):
    cloud.client("s3").head_bucket(Bucket=cloud.bucket)
    assert cloud.s3_uri("data", "train") == f"s3://{cloud.bucket}/{cloud.run}/data/train"


def test_the_name_of_a_run_survives_the_sdk_s_shortening_of_job_names(cloud):
    from sagemaker.core.common_utils import name_from_base

    assert cloud.run in name_from_base(cloud.run, max_length=32, short=True)


def test_what_a_reader_is_told_names_no_account(cloud):
    told = dict(cloud.describe())
    assert told["runs on"] == "this machine (local_cloud)"
    assert told["run"] == cloud.run
    assert told["role"] == ROLE_NAME


def test_the_role_allows_named_actions_on_named_resources_only(cloud):
    iam = cloud.client("iam")
    stored = iam.get_role_policy(RoleName=ROLE_NAME, PolicyName="course")["PolicyDocument"]
    document = stored if isinstance(stored, dict) else json.loads(unquote(stored))
    assert document == policy(cloud.bucket)
    for statement in document["Statement"]:
        assert not any("*" in action for action in statement["Action"])
        if statement["Resource"] == "*":
            assert set(statement["Action"]) <= MAY_NAME_NO_RESOURCE
        else:
            assert statement["Resource"].startswith("arn:aws:")


def test_the_sdk_accepts_the_role_for_training(cloud):
    from sagemaker.core.helper.iam_role_resolver import resolve_and_validate_role

    assert resolve_and_validate_role(cloud.role, "training", cloud.session) == cloud.role


def test_the_sdk_refuses_a_role_that_lacks_an_action(cloud):
    from sagemaker.core.helper.iam_role_resolver import (
        RoleValidationError,
        resolve_and_validate_role,
    )

    lacking = copy.deepcopy(policy(cloud.bucket))
    for statement in lacking["Statement"]:
        statement["Action"] = [a for a in statement["Action"] if a != "ec2:DescribeVpcs"]
    iam = cloud.client("iam")
    put_policy(iam, lacking)
    try:
        with pytest.raises(RoleValidationError, match="Missing permissions: ec2:DescribeVpcs"):
            resolve_and_validate_role(cloud.role, "training", cloud.session)
    finally:
        put_policy(iam, policy(cloud.bucket))


def put_policy(iam, document):
    text = json.dumps(document)
    iam.put_role_policy(RoleName=ROLE_NAME, PolicyName="course", PolicyDocument=text)


def test_the_role_may_use_the_bucket_the_sdk_uploads_to_and_no_other(cloud):
    def decision(resource):
        answer = cloud.client("iam").simulate_principal_policy(
            PolicySourceArn=cloud.role, ActionNames=["s3:PutObject"], ResourceArns=[resource]
        )
        return answer["EvaluationResults"][0]["EvalDecision"]

    # The first is literally what ModelTrainer asks; where it is denied it uploads elsewhere.
    assert decision(f"arn:aws:s3:::{cloud.bucket}/*") == "allowed"
    assert decision("arn:aws:s3:::somebody-elses-bucket/key") == "implicitDeny"


def test_the_sdk_reports_its_use_to_nobody(cloud, monkeypatch):
    from sagemaker.core.telemetry import telemetry_logging
    from sagemaker.core.telemetry.constants import Feature

    sent = []
    monkeypatch.setattr(telemetry_logging, "_send_telemetry_request", lambda *a: sent.append(a))

    class Caller:
        sagemaker_session = cloud.session

        @telemetry_logging._telemetry_emitter(feature=next(iter(Feature)), func_name="anything")
        def act(self):
            return "done"

    assert Caller().act() == "done"
    assert sent == []
    monkeypatch.setattr(cloud.session, "sagemaker_config", {})
    Caller().act()
    assert len(sent) == 1, "without the setting it reports, or this test shows nothing"


def test_a_bucket_of_somebody_else_is_refused():
    from studio.cloud import make_bucket

    class Foreign:
        def head_bucket(self, Bucket):
            raise ClientError({"Error": {"Code": "403", "Message": "Forbidden"}}, "HeadBucket")

    with pytest.raises(CloudError, match="The bucket mine cannot be used"):
        make_bucket(Foreign(), "mine", "us-east-1")


def test_a_bucket_that_may_not_be_made_is_told():
    from studio.cloud import make_bucket

    class Forbidding:
        def head_bucket(self, Bucket):
            raise ClientError({"Error": {"Code": "404", "Message": "Not Found"}}, "HeadBucket")

        def create_bucket(self, **options):
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": ""}}, "CreateBucket")

    with pytest.raises(CloudError, match="The bucket mine cannot be made"):
        make_bucket(Forbidding(), "mine", "us-east-1")


@pytest.mark.parametrize("path", ["", "aws-reserved/sso.amazonaws.com/"])
def test_a_role_of_a_person_is_not_taken_for_that_of_a_job(monkeypatch, path):
    from sagemaker.core.helper import session_helper

    from studio.cloud import find_role

    person = f"arn:aws:iam::123456789012:role/{path}AWSReservedSSO_Admin_1"
    monkeypatch.delenv("SAGEMAKER_ROLE", raising=False)
    monkeypatch.setattr(session_helper, "get_execution_role", lambda: person)
    with pytest.raises(CloudError, match="set SAGEMAKER_ROLE"):
        find_role(None, "mine")


def test_a_public_bucket_is_asked_for_at_aws_and_without_a_signature(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    sent = []

    def answer(request, **kwargs):
        sent.append(request)
        return AWSResponse(request.url, 404, {}, HTTPResponse(io.BytesIO(), preload_content=False))

    client = public_s3()
    client.meta.events.register("before-send.s3.GetObject", answer)
    with pytest.raises(ClientError):
        client.get_object(Bucket="aft-vbi-pds", Key="bin-images/523.jpg")
    assert sent[0].url == "https://aft-vbi-pds.s3.us-east-1.amazonaws.com/bin-images/523.jpg"
    assert "Authorization" not in sent[0].headers
