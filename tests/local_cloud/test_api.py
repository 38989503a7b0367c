"""The control plane as a whole: errors, lists, deletion, tags, S3 traffic and the AWS CLI."""

import json
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

import psutil
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from harness import BUCKET, ROLE, until

NO_VALIDATION = Config(parameter_validation=False)  # So that the server is asked.
PREFIX = {"S3DataType": "S3Prefix", "S3Uri": "s3://bucket/key"}
FILE_SYSTEM = {
    "FileSystemId": "fs-12345678901",
    "FileSystemAccessMode": "ro",
    "FileSystemType": "EFS",
    "DirectoryPath": "/",
}
BROKEN_METRIC = {
    "TrainingInputMode": "File",
    "MetricDefinitions": [{"Name": "m", "Regex": "("}],
}


def channel(name, **source):
    return {"ChannelName": name, "DataSource": source}


@pytest.fixture
def aws(cloud, tmp_path):
    """Runs the AWS CLI with nothing but the variables that `env` prints."""

    def run(*arguments, fails=False):
        done = subprocess.run(
            [str(Path(sys.executable).with_name("aws")), *arguments],
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **cloud.env},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode != 0) == fails, done.stderr
        return done.stderr if fails else done.stdout

    return run


@pytest.fixture(scope="module")
def three_jobs(cloud):
    """The names of three finished jobs that begin alike, oldest first."""
    prefix = f"listed-{uuid.uuid4().hex[:6]}"
    names = [f"{prefix}-{letter}" for letter in "bca"]
    for name, script in zip(names, ("print(1)", "raise SystemExit('no')", "print(3)")):
        cloud.sagemaker.create_training_job(**cloud.training_request(script, TrainingJobName=name))
    for name in names:
        cloud.wait_for_training(name)
    return prefix, names


def names_of(answer):
    return [entry["TrainingJobName"] for entry in answer["TrainingJobSummaries"]]


def test_lists_filter_sort_and_page(cloud, three_jobs):
    prefix, names = three_jobs
    list_jobs = cloud.sagemaker.list_training_jobs
    assert names_of(list_jobs(NameContains=prefix)) == names[::-1]
    assert names_of(list_jobs(NameContains=prefix, SortOrder="Ascending")) == names
    assert names_of(list_jobs(NameContains=prefix, SortBy="Name")) == sorted(names)
    assert names_of(list_jobs(NameContains=prefix, StatusEquals="Failed")) == [names[1]]
    first = list_jobs(NameContains=prefix, MaxResults=2)
    second = list_jobs(NameContains=prefix, MaxResults=2, NextToken=first["NextToken"])
    assert names_of(first) + names_of(second) == names[::-1]
    assert "NextToken" not in second
    created = cloud.sagemaker.describe_training_job(TrainingJobName=names[1])["CreationTime"]
    assert names_of(list_jobs(NameContains=prefix, CreationTimeAfter=created)) == [names[2]]
    assert names_of(list_jobs(NameContains=prefix, CreationTimeBefore=created)) == [names[0]]
    with pytest.raises(ClientError, match="Invalid pagination token"):
        list_jobs(NextToken="-5")


def test_two_jobs_cannot_have_one_name(cloud, three_jobs):
    request = cloud.training_request("print(1)", TrainingJobName=three_jobs[1][0])
    with pytest.raises(cloud.sagemaker.exceptions.ResourceInUse, match="already exists"):
        cloud.sagemaker.create_training_job(**request)


def test_deleting_a_job(cloud):
    name = cloud.start_training("import time; time.sleep(60)")
    with pytest.raises(cloud.sagemaker.exceptions.ResourceInUse, match="stop it first"):
        cloud.sagemaker.delete_training_job(TrainingJobName=name)
    cloud.sagemaker.stop_training_job(TrainingJobName=name)
    cloud.wait_for_training(name)
    cloud.sagemaker.delete_training_job(TrainingJobName=name)
    with pytest.raises(ClientError, match="Could not find TrainingJob"):
        cloud.sagemaker.describe_training_job(TrainingJobName=name)


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        ("describe_training_job", {"TrainingJobName": "x"}),
        ("stop_training_job", {"TrainingJobName": "x"}),
        ("describe_processing_job", {"ProcessingJobName": "x"}),
        ("stop_processing_job", {"ProcessingJobName": "x"}),
        ("describe_hyper_parameter_tuning_job", {"HyperParameterTuningJobName": "x"}),
        ("stop_hyper_parameter_tuning_job", {"HyperParameterTuningJobName": "x"}),
        ("describe_model", {"ModelName": "x"}),
        ("delete_model", {"ModelName": "x"}),
        ("describe_endpoint_config", {"EndpointConfigName": "x"}),
        ("describe_endpoint", {"EndpointName": "x"}),
        ("delete_endpoint", {"EndpointName": "x"}),
        ("create_endpoint", {"EndpointName": "x", "EndpointConfigName": "x"}),
    ],
)
def test_what_does_not_exist_is_not_found(cloud, operation, arguments):
    with pytest.raises(ClientError, match="Could not find") as refused:
        getattr(cloud.sagemaker, operation)(**arguments)
    assert refused.value.response["Error"]["Code"] == "ValidationException"


def test_an_operation_that_is_not_offered(cloud):
    with pytest.raises(ClientError, match="does not offer") as refused:
        cloud.sagemaker.list_notebook_instances()
    assert refused.value.response["Error"]["Code"] == "UnknownOperationException"
    with pytest.raises(ClientError, match="does not offer"):
        cloud.client("ec2").describe_instances()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"TrainingJobName": "../../escape"}, "regular expression"),
        ({"TrainingJobName": "a" * 64}, "regular expression"),
        ({"RoleArn": None}, "RoleArn"),
        ({"HyperParameters": {}}, "brings none for 'any/image:1'"),
        ({"InputDataConfig": [channel("..", S3DataSource=PREFIX)]}, "cannot name a channel"),
        ({"InputDataConfig": [channel("a", FileSystemDataSource=FILE_SYSTEM)]}, "S3Prefix"),
        ({"AlgorithmSpecification": BROKEN_METRIC}, "regex of metric 'm'"),
    ],
)
def test_bad_requests_get_one_sentence(cloud, fields, words):
    request = {**cloud.training_request("print(1)"), **fields}
    request = {name: value for name, value in request.items() if value is not None}
    client = cloud.client("sagemaker", config=NO_VALIDATION)
    with pytest.raises(ClientError, match=words) as refused:
        client.create_training_job(**request)
    assert refused.value.response["Error"]["Code"] == "ValidationException"


def test_tags(cloud, three_jobs):
    arn = cloud.sagemaker.describe_training_job(TrainingJobName=three_jobs[1][0])["TrainingJobArn"]
    cloud.sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "a", "Value": "1"}])
    cloud.sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "b", "Value": "2"}])
    cloud.sagemaker.delete_tags(ResourceArn=arn, TagKeys=["a"])
    assert cloud.sagemaker.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "b", "Value": "2"}]


def test_every_name_pattern_can_be_checked():
    from local_cloud.api import ControlPlane
    from local_cloud.hosting import Hosting
    from local_cloud.processing import Processing
    from local_cloud.tags import Tags
    from local_cloud.training import Training
    from local_cloud.tuning import Tuning

    services = [make(None, None) for make in (Training, Processing, Hosting)]
    plane = ControlPlane([*services, Tuning(None, None, None), Tags(None)])
    for operation in plane.operations:
        for shape in plane.model.operation_model(operation).input_shape.members.values():
            re.compile(shape.metadata.get("pattern", ""))


def test_many_jobs_leave_no_thread_or_handle_behind(cloud):
    server = psutil.Process(cloud.server["pid"])

    def counts():
        return server.num_threads(), server.num_fds()

    def run(number):
        names = [cloud.start_training("print('x')") for _ in range(number)]
        for name in names:
            cloud.wait_for_training(name)

    run(3)  # Fills the pools of connections.
    threads, handles = counts()
    run(9)
    until(lambda: counts()[0] <= threads + 2, timeout=10)
    until(lambda: counts()[1] <= handles + 8, timeout=10)


def test_aws_cli_runs_with_environment_variables_alone(aws, tmp_path, three_jobs):
    assert json.loads(aws("sts", "get-caller-identity"))["Account"] == "123456789012"
    listed = json.loads(aws("sagemaker", "list-training-jobs", "--name-contains", three_jobs[0]))
    assert len(listed["TrainingJobSummaries"]) == 3
    error = aws("sagemaker", "describe-endpoint", "--endpoint-name", "none", fails=True)
    assert 'Could not find Endpoint "none"' in error


def test_aws_cli_copies_a_large_file_in_parts(aws, tmp_path):
    original = os.urandom(20 << 20)
    (tmp_path / "large").write_bytes(original)
    aws("s3", "cp", str(tmp_path / "large"), f"s3://{BUCKET}/large file", "--no-progress")
    aws("s3", "cp", f"s3://{BUCKET}/large file", str(tmp_path / "back"), "--no-progress")
    assert (tmp_path / "back").read_bytes() == original


def test_role_check_of_the_sdk(cloud):
    iam = cloud.client("iam")
    statement = [
        {"Effect": "Allow", "Action": ["s3:*"], "Resource": "*"},
        {"Effect": "Deny", "Action": "s3:DeleteBucket", "Resource": "*"},
    ]
    iam.create_role(RoleName="checked", AssumeRolePolicyDocument="{}")
    iam.put_role_policy(
        RoleName="checked",
        PolicyName="p",
        PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": statement}),
    )
    answer = iam.simulate_principal_policy(
        PolicySourceArn=ROLE.replace("tester", "checked"),
        ActionNames=["s3:PutObject", "s3:DeleteBucket", "iam:CreateUser"],
    )
    decisions = [result["EvalDecision"] for result in answer["EvaluationResults"]]
    assert decisions == ["allowed", "explicitDeny", "implicitDeny"]
    with pytest.raises(iam.exceptions.NoSuchEntityException):
        iam.simulate_principal_policy(
            PolicySourceArn=ROLE.replace("tester", "nobody"), ActionNames=["s3:PutObject"]
        )


def test_the_cloud_imports_nothing_of_the_project_s_machine_learning():
    script = """
import sys, local_cloud.server, local_cloud.status
names = {name.partition(".")[0] for name in sys.modules}
print(sorted(names & {"vision", "studio", "insight", "torch", "torchvision", "sagemaker"}))
"""
    project = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=project, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
