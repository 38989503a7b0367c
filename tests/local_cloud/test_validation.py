"""The checks of requests and answers, against the service's own description."""

import functools
import json

import botocore.session
import pytest
import urllib3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from harness import ROLE, Cloud, command_line
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from local_cloud import validation

MODEL = botocore.session.get_session().get_service_model("sagemaker")


def shape_of(operation):
    return MODEL.operation_model(operation).input_shape


def complaint(operation, params):
    shape = shape_of(operation)
    return validation.message(validation.problems(validation.parsed(params, shape), shape))


def test_every_pattern_of_the_service_can_be_checked():
    for service in ("sagemaker", "sagemaker-runtime"):
        model = botocore.session.get_session().get_service_model(service)
        shapes = [model.shape_for(name) for name in model.shape_names]
        for shape in shapes:
            if "pattern" in shape.metadata:
                validation.compiled(shape.metadata["pattern"])


def test_the_service_s_words():
    assert complaint("StopTrainingJob", {"TrainingJobName": "a b"}) == (
        "1 validation error detected: Value 'a b' at 'trainingJobName' failed to satisfy "
        "constraint: Member must satisfy regular expression pattern: "
        "[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}"
    )
    assert complaint("ListTrainingJobs", {"MaxResults": 0, "SortBy": "Size"}) == (
        "2 validation errors detected: Value '0' at 'maxResults' failed to satisfy constraint: "
        "Member must have value greater than or equal to 1; Value 'Size' at 'sortBy' failed to "
        "satisfy constraint: Member must satisfy enum value set: [Name, CreationTime, Status]"
    )


@pytest.mark.parametrize(
    ("text", "fits"),
    [("Größe 5", True), ("日本 ❤", False), ("a=b/c:d@e", True), ("semi;colon", False)],
    ids=["letters", "symbol", "signs", "semicolon"],
)
def test_unicode_patterns(text, fits):
    value = {"ResourceArn": "arn:aws:sagemaker:us-east-1:123456789012:model/m"}
    value["Tags"] = [{"Key": text, "Value": "v"}]
    assert (validation.problems(value, shape_of("AddTags")) == []) is fits


@pytest.mark.parametrize(
    "params",
    [
        {"MaxResults": "ten"},
        {"MaxResults": 1.5},
        {"MaxResults": True},
        {"MaxResults": 2**40},
        {"NameContains": 7},
        {"NameContains": "\ud800"},
        {"CreationTimeAfter": 1e300},
        {"CreationTimeAfter": -1},
        ["MaxResults"],
    ],
    ids=["text", "fraction", "truth", "huge", "number", "surrogate", "late", "early", "list"],
)
def test_wrong_types(params):
    with pytest.raises(validation.WrongType):
        validation.parsed(params, shape_of("ListTrainingJobs"))


def test_unknown_members_and_nulls_are_left_out():
    params = {"MaxResults": 5, "Color": "red", "SortBy": None}
    assert validation.parsed(params, shape_of("ListTrainingJobs")) == {"MaxResults": 5}


def test_answers_are_checked():
    shape = MODEL.operation_model("ListModels").output_shape
    good = {"ModelName": "m", "ModelArn": "arn:aws:sagemaker:us-east-1:123456789012:model/m"}
    good["CreationTime"] = 1.5
    assert validation.answer_problems({"Models": [good]}, shape) == []
    bad = [{**good, "Size": 3}, {**good, "CreationTime": "now"}, {"ModelName": "m"}, {}]
    for entry in bad:
        assert validation.answer_problems({"Models": [entry]}, shape)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)


def values_of(shape, depth=4):
    """Values that begin as the shape asks, and often break it: wrong types, bounds, patterns."""
    kind = shape.type_name
    if depth == 0:
        return JSON
    if kind == "structure":
        members = {k: values_of(v, depth - 1) for k, v in sorted(shape.members.items())}
        required = {k: v for k, v in members.items() if k in shape.required_members}
        optional = {k: v for k, v in members.items() if k not in shape.required_members}
        good = st.fixed_dictionaries(required, optional=optional)
    elif kind == "list":
        good = st.lists(values_of(shape.member, depth - 1), max_size=2)
    elif kind == "map":
        good = st.dictionaries(st.text(max_size=9), values_of(shape.value, depth - 1), max_size=2)
    elif kind == "string":
        names = st.sampled_from(["a", "x-1", "s3://b/k", "arn:aws:iam::123456789012:role/r", "\0"])
        good = st.sampled_from(shape.enum) if shape.enum else names | st.text(max_size=12)
    elif kind == "boolean":
        good = st.booleans()
    elif kind in ("integer", "long"):
        good = st.integers(-2, 10) | st.integers()
    else:
        good = st.floats() | st.integers(0, 2_000_000_000)
    return st.one_of(*[good] * 9, JSON)


@pytest.fixture(scope="module")
def raw_sagemaker(tmp_path_factory):
    """Sends a signed body as it is to a cloud of its own; status and answer."""
    home = tmp_path_factory.mktemp("fuzzed") / "home"
    assert command_line(home, "start").returncode == 0
    cloud = Cloud(home)
    credentials = cloud.session.get_credentials().get_frozen_credentials()
    pool = urllib3.PoolManager()

    def send(operation, body):
        request = AWSRequest(
            "POST",
            f"{cloud.url}/",
            data=body,
            headers={
                "X-Amz-Target": f"SageMaker.{operation}",
                "Content-Type": "application/x-amz-json-1.1",
            },
        )
        SigV4Auth(credentials, "sagemaker", cloud.session.region_name).add_auth(request)
        answer = pool.request("POST", request.url, body=body, headers=dict(request.headers))
        return answer.status, json.loads(answer.data)

    yield send
    complaints = (home / "server.log").read_text()
    command_line(home, "reset")
    assert complaints == ""


OPERATIONS = st.sampled_from(
    sorted(name for name in MODEL.operation_names if "Job" in name or "Endpoint" in name)
    + ["AddTags", "CreateModel", "DeleteModel", "DeleteTags", "DescribeModel", "ListModels"] * 3
)
STRANGE = JSON | st.sampled_from(
    [
        "",
        "\0",
        "..",
        "/",
        "s3://",
        "s3://b",
        "s3://b/../k",
        "1e400",
        "nan",
        "-1",
        "$[",
        "(",
        "9" * 40,
    ]
)
CLUSTER = {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1}
OUTPUT = {"S3OutputPath": "s3://none/out"}
DEFINITION = {
    "StaticHyperParameters": {"sagemaker_program": "main.py"},
    "AlgorithmSpecification": {
        "TrainingImage": "pytorch-training:2",
        "TrainingInputMode": "File",
        "MetricDefinitions": [{"Name": "loss", "Regex": "loss=(.*)"}],
    },
    "RoleArn": ROLE,
    "InputDataConfig": [
        {
            "ChannelName": "train",
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://none/k"}},
        }
    ],
    "OutputDataConfig": OUTPUT,
    "ResourceConfig": CLUSTER,
    "StoppingCondition": {"MaxRuntimeInSeconds": 5},
    "CheckpointConfig": {"S3Uri": "s3://none/checkpoints"},
}
TRAINING = {k: v for k, v in DEFINITION.items() if k != "StaticHyperParameters"}
# Requests that are right but for the S3 objects, which do not exist, so that no job runs for long.
RIGHT = {
    "CreateTrainingJob": {
        "TrainingJobName": "t",
        "HyperParameters": DEFINITION["StaticHyperParameters"],
        **TRAINING,
    },
    "CreateHyperParameterTuningJob": {
        "HyperParameterTuningJobName": "h",
        "HyperParameterTuningJobConfig": {
            "Strategy": "Random",
            "HyperParameterTuningJobObjective": {"Type": "Minimize", "MetricName": "loss"},
            "ResourceLimits": {"MaxNumberOfTrainingJobs": 1, "MaxParallelTrainingJobs": 1},
            "ParameterRanges": {
                "ContinuousParameterRanges": [
                    {"Name": "lr", "MinValue": "0.1", "MaxValue": "1", "ScalingType": "Auto"}
                ],
                "IntegerParameterRanges": [{"Name": "n", "MinValue": "1", "MaxValue": "4"}],
                "CategoricalParameterRanges": [{"Name": "c", "Values": ["a", "b"]}],
            },
        },
        "TrainingJobDefinition": DEFINITION,
    },
    "CreateProcessingJob": {
        "ProcessingJobName": "p",
        "ProcessingResources": {"ClusterConfig": CLUSTER},
        "AppSpecification": {"ImageUri": "pytorch-training:2", "ContainerEntrypoint": ["true"]},
        "RoleArn": ROLE,
        "ProcessingInputs": [
            {
                "InputName": "in",
                "S3Input": {
                    "S3Uri": "s3://none/k",
                    "LocalPath": "/opt/ml/processing/in",
                    "S3DataType": "S3Prefix",
                    "S3InputMode": "File",
                },
            }
        ],
        "ProcessingOutputConfig": {
            "Outputs": [
                {
                    "OutputName": "out",
                    "S3Output": {
                        "S3Uri": "s3://none/o",
                        "LocalPath": "/opt/ml/processing/out",
                        "S3UploadMode": "EndOfJob",
                    },
                }
            ]
        },
    },
    "CreateModel": {
        "ModelName": "m",
        "ExecutionRoleArn": ROLE,
        "PrimaryContainer": {
            "Image": "pytorch-inference:2",
            "ModelDataUrl": "s3://none/model.tar.gz",
            "Environment": {"A": "b"},
        },
    },
    "CreateEndpointConfig": {
        "EndpointConfigName": "c",
        "ProductionVariants": [
            {
                "VariantName": "v",
                "ModelName": "m",
                "InstanceType": "ml.m5.large",
                "InitialInstanceCount": 1,
                "InitialVariantWeight": 1.0,
            }
        ],
        "DataCaptureConfig": {
            "EnableCapture": True,
            "InitialSamplingPercentage": 50,
            "DestinationS3Uri": "s3://none/captured",
            "CaptureOptions": [{"CaptureMode": "Input"}],
        },
    },
    "CreateEndpoint": {"EndpointName": "e", "EndpointConfigName": "c"},
    "CreateTransformJob": {
        "TransformJobName": "b",
        "ModelName": "m",
        "TransformInput": {
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://none/k"}}
        },
        "TransformOutput": {"S3OutputPath": "s3://none/out"},
        "TransformResources": {"InstanceType": "ml.m5.large", "InstanceCount": 1},
    },
}


def places(value, path=()):
    """The paths of everything inside a request."""
    children = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in children:
        yield (*path, key)
        if isinstance(child, (dict, list)):
            yield from places(child, (*path, key))


@st.composite
def nearly_right(draw):
    """A right request with one or two members replaced or removed."""
    name = draw(st.sampled_from(sorted(RIGHT)))
    request = json.loads(json.dumps(RIGHT[name]))
    for _ in range(draw(st.integers(1, 2))):
        *path, last = draw(st.sampled_from(sorted(places(request), key=str)))
        parent = request
        for key in path:
            parent = parent[key]
        if draw(st.booleans()):
            parent[last] = draw(STRANGE)
        else:
            del parent[last]
        if not request:
            break
    return name, json.dumps(request).encode()


@functools.cache  # Making one takes longer than drawing from it.
def malformed(name):
    """Bodies for an operation that begin as its description asks, or are no JSON at all."""
    described = values_of(shape_of(name)).map(lambda value: json.dumps(value).encode())
    return st.tuples(st.just(name), st.one_of(*[described] * 5, st.binary(max_size=40)))


@settings(
    max_examples=1400,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@example(request=("CreateTrainingJob", b"[" * 100_000))
@given(request=st.one_of(*[nearly_right()] * 2, OPERATIONS.flatmap(malformed)))
def test_malformed_bodies_never_get_a_500(raw_sagemaker, request):
    name, body = request
    status, answer = raw_sagemaker(name, body)
    assert status in (200, 400, 413), answer
    if status != 200:
        assert answer["__type"] not in ("", "InternalFailure")
        assert answer["message"].strip()
