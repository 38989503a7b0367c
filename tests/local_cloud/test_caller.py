"""Code that names neither role nor bucket finds both, as in a notebook of SageMaker Studio."""

import json
from urllib.parse import unquote

import boto3
import pytest
from harness import Cloud, command_line

ROLE = "arn:aws:iam::123456789012:role/LocalCloudExecution"


def test_the_caller_has_assumed_a_role_that_exists(cloud):
    identity = cloud.client("sts").get_caller_identity()
    role_name = identity["Arn"].split("/")[1]
    assert identity["Account"] == "123456789012"
    assert identity["Arn"].startswith("arn:aws:sts::123456789012:assumed-role/")
    role = cloud.client("iam").get_role(RoleName=role_name)["Role"]
    assert role["Arn"] == ROLE
    document = role["AssumeRolePolicyDocument"]
    trust = document if isinstance(document, dict) else json.loads(unquote(document))
    assert trust["Statement"][0]["Principal"] == {"Service": "sagemaker.amazonaws.com"}


def test_its_role_is_there_after_a_restart_and_keeps_what_was_added(own_home):
    assert command_line(own_home, "start").returncode == 0
    add = Cloud(own_home).client("iam").put_role_policy
    allow = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
    add(RoleName="LocalCloudExecution", PolicyName="mine", PolicyDocument=policy)
    command_line(own_home, "stop")
    assert command_line(own_home, "start").returncode == 0
    names = Cloud(own_home).client("iam").list_role_policies(RoleName="LocalCloudExecution")
    assert names["PolicyNames"] == ["everything", "mine"]


@pytest.mark.parametrize("kind", ["training", "serving"])
def test_the_sdk_takes_the_callers_role_where_none_is_named(sdk, kind):
    from sagemaker.core.helper.iam_role_resolver import resolve_and_validate_role

    assert resolve_and_validate_role(None, kind, sdk) == ROLE


def test_the_sdk_finds_its_bucket_and_sends_no_telemetry(sdk, cloud):
    """Without the defaults file, it would ask AWS's own address for the account's number."""
    from sagemaker.core.common_utils import resolve_value_from_config
    from sagemaker.core.config.config_schema import TELEMETRY_OPT_OUT_PATH
    from sagemaker.core.helper.session_helper import Session

    session = Session()
    assert session.default_bucket() == "sagemaker-us-east-1-123456789012"
    assert cloud.s3.head_bucket(Bucket=session.default_bucket())
    opted_out = resolve_value_from_config(None, TELEMETRY_OPT_OUT_PATH, False, session)
    assert opted_out is True


def test_policies_of_aws_can_be_attached(cloud):
    iam = cloud.client("iam")
    trust = {"Effect": "Allow", "Principal": "*", "Action": "sts:AssumeRole"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    role = iam.create_role(RoleName="managed", AssumeRolePolicyDocument=document)["Role"]
    policy = "arn:aws:iam::aws:policy/AmazonSageMakerFullAccess"
    iam.attach_role_policy(RoleName="managed", PolicyArn=policy)
    results = iam.simulate_principal_policy(
        PolicySourceArn=role["Arn"], ActionNames=["sagemaker:CreateTrainingJob", "ec2:RunInstances"]
    )["EvaluationResults"]
    assert [result["EvalDecision"] for result in results] == ["allowed", "implicitDeny"]


@pytest.mark.parametrize("operation", ["assume_role", "get_session_token"])
def test_temporary_keys_are_accepted(cloud, operation):
    role = {"RoleArn": ROLE, "RoleSessionName": "me"} if operation == "assume_role" else {}
    keys = getattr(cloud.client("sts"), operation)(**role)["Credentials"]
    client = boto3.client(
        "sagemaker",
        endpoint_url=cloud.url,
        region_name="us-east-1",
        aws_access_key_id=keys["AccessKeyId"],
        aws_secret_access_key=keys["SecretAccessKey"],
        aws_session_token=keys["SessionToken"],
    )
    assert "Models" in client.list_models()
