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
from harness import BUCKET, ROLE, processes_with, until

QUICK_JOBS = int(os.environ.get("SOAK_JOBS", "9"))  # `make soak` runs 200.
NO_VALIDATION = Config(parameter_validation=False)  # So that the server is asked.
NO_INSTANCES = {"InstanceType": "ml.m5.large", "InstanceCount": -1, "VolumeSizeInGB": 1}
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
    assert names_of(list_jobs(NameContains=prefix)) == names
    assert names_of(list_jobs(NameContains=prefix, SortOrder="Descending")) == names[::-1]
    assert names_of(list_jobs(NameContains=prefix, SortBy="Name")) == sorted(names)
    assert names_of(list_jobs(NameContains=prefix, StatusEquals="Failed")) == [names[1]]
    first = list_jobs(NameContains=prefix, MaxResults=2)
    second = list_jobs(NameContains=prefix, MaxResults=2, NextToken=first["NextToken"])
    assert names_of(first) + names_of(second) == names
    assert "NextToken" not in second
    created = cloud.sagemaker.describe_training_job(TrainingJobName=names[1])["CreationTime"]
    assert names_of(list_jobs(NameContains=prefix, CreationTimeAfter=created)) == [names[2]]
    assert names_of(list_jobs(NameContains=prefix, CreationTimeBefore=created)) == [names[0]]
    for token in ("-5", "eyJ", first["NextToken"][:-4], "WzEsICIiXQ=="):
        with pytest.raises(ClientError, match="Invalid pagination token"):
            list_jobs(NextToken=token)


def test_a_page_goes_on_where_the_last_one_ended(cloud):
    prefix = f"paged-{uuid.uuid4().hex[:6]}"

    def make(letter):
        data = {"Image": "i", "ModelDataUrl": "s3://bucket/key"}
        name = f"{prefix}-{letter}"
        cloud.sagemaker.create_model(ModelName=name, ExecutionRoleArn=ROLE, PrimaryContainer=data)

    for letter in "bdf":
        make(letter)
    asked = {"NameContains": prefix, "SortBy": "Name", "SortOrder": "Ascending", "MaxResults": 2}
    first = cloud.sagemaker.list_models(**asked)
    cloud.sagemaker.delete_model(ModelName=f"{prefix}-d")
    for letter in "ae":
        make(letter)
    second = cloud.sagemaker.list_models(**asked, NextToken=first["NextToken"])
    found = [model["ModelName"][-1] for model in first["Models"] + second["Models"]]
    assert found == list("bdef")


def test_deleting_a_job(cloud):
    name = cloud.start_training("import time; time.sleep(60)")
    with pytest.raises(cloud.sagemaker.exceptions.ResourceInUse, match="stop it first"):
        cloud.sagemaker.delete_training_job(TrainingJobName=name)
    cloud.sagemaker.stop_training_job(TrainingJobName=name)
    cloud.wait_for_training(name)
    cloud.sagemaker.delete_training_job(TrainingJobName=name)
    with pytest.raises(ClientError, match="Requested resource not found"):
        cloud.sagemaker.describe_training_job(TrainingJobName=name)


NOT_FOUND = {
    "TrainingJob": ("ValidationException", "Requested resource not found."),
    "ProcessingJob": ("ValidationException", "Could not find requested job with name: x"),
    "HyperParameterTuningJob": ("ResourceNotFound", "can't find a tuning job with the name x"),
    "Model": ("ValidationException", 'Could not find model "x"'),
    "EndpointConfig": ("ValidationException", 'Could not find endpoint configuration "x"'),
    "Endpoint": ("ValidationException", 'Could not find endpoint "x"'),
}


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("describe_training_job", "TrainingJob"),
        ("stop_training_job", "TrainingJob"),
        ("describe_processing_job", "ProcessingJob"),
        ("stop_processing_job", "ProcessingJob"),
        ("describe_hyper_parameter_tuning_job", "HyperParameterTuningJob"),
        ("stop_hyper_parameter_tuning_job", "HyperParameterTuningJob"),
        ("describe_model", "Model"),
        ("delete_model", "Model"),
        ("describe_endpoint_config", "EndpointConfig"),
        ("describe_endpoint", "Endpoint"),
        ("delete_endpoint", "Endpoint"),
    ],
)
def test_what_does_not_exist_is_not_found(cloud, operation, kind):
    code, words = NOT_FOUND[kind]
    with pytest.raises(ClientError, match=re.escape(words)) as refused:
        getattr(cloud.sagemaker, operation)(**{f"{kind}Name": "x"})
    assert refused.value.response["Error"]["Code"] == code


def test_a_name_that_is_taken(cloud, three_jobs):
    request = cloud.training_request("print(1)", TrainingJobName=three_jobs[1][0])
    with pytest.raises(cloud.sagemaker.exceptions.ResourceInUse, match="must be unique"):
        cloud.sagemaker.create_training_job(**request)
    model = {"Image": "i", "ModelDataUrl": "s3://bucket/key"}
    name = f"taken-{uuid.uuid4().hex[:6]}"
    wanted = {"ModelName": name, "ExecutionRoleArn": ROLE, "PrimaryContainer": model}
    cloud.sagemaker.create_model(**wanted)
    with pytest.raises(ClientError, match="Cannot create already existing model") as refused:
        cloud.sagemaker.create_model(**wanted)
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
        ({"TrainingJobName": "a" * 64}, "length less than or equal to 63"),
        ({"RoleArn": None}, "Value null at 'roleArn' .* must not be null"),
        ({"RoleArn": "arn:nobody"}, "at 'roleArn' .* regular expression pattern"),
        ({"ResourceConfig": NO_INSTANCES}, "'resourceConfig.instanceCount' .* or equal to 0"),
        ({"Tags": [{"Key": "k" * 200, "Value": "v"}]}, "at 'tags.1.member.key'"),
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


def test_many_jobs_leave_nothing_behind(cloud):
    server = psutil.Process(cloud.server["pid"])
    jobs = Path(cloud.server["work_folder"]) / "jobs" / "TrainingJob"

    def counts():
        return server.num_threads(), server.num_fds()

    def processes():
        return {p.pid for p in processes_with("LOCAL_CLOUD_INSTANCE", cloud.server["name"])}

    before = processes()
    # Side by side, so that the pools of connections are as full as they get.
    for name in [cloud.start_training("print('x')") for _ in range(8)]:
        assert cloud.wait_for_training(name)["TrainingJobStatus"] == "Completed"
    threads, handles = counts()
    for _ in range(QUICK_JOBS):
        assert cloud.train("print('x')")["TrainingJobStatus"] == "Completed"
    until(lambda: counts()[0] <= threads + 2)
    until(lambda: counts()[1] <= handles + 8)
    until(lambda: not any("job-" in path.name for path in jobs.iterdir()))
    assert processes() <= before


def test_aws_cli_runs_with_environment_variables_alone(aws, tmp_path, three_jobs):
    assert json.loads(aws("sts", "get-caller-identity"))["Account"] == "123456789012"
    listed = json.loads(aws("sagemaker", "list-training-jobs", "--name-contains", three_jobs[0]))
    assert len(listed["TrainingJobSummaries"]) == 3
    error = aws("sagemaker", "describe-endpoint", "--endpoint-name", "none", fails=True)
    assert 'Could not find endpoint "none"' in error


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
