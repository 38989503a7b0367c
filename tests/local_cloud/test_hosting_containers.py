"""What a container is made of: model data, code, packages; pipelines; what is refused."""

import io
import json
import zipfile

import pytest
from botocore.exceptions import ClientError
from endpoints import Endpoint, create_config, create_model, deploy, multiplier, unique, variant
from harness import BUCKET, ROLE, archive

READ = """
import json, os

def model_fn(model_dir):
    with open("/opt/ml/model/name.txt") as file:
        name = file.read()
    with open(os.path.join(os.environ["DATA"], "name.txt")) as file:
        return [name, file.read(), model_dir == os.environ["SM_MODEL_DIR"]]

def transform_fn(model, body, content_type, accept):
    return json.dumps(model)
"""
WORD = """
import sys

def model_fn(model_dir):
    import wordlib
    return wordlib.WORD

def transform_fn(model, body, content_type, accept):
    return model, "text/plain"
"""
STEP = """
import json, os

def model_fn(model_dir):
    return os.environ["STEP"]

def transform_fn(model, body, content_type, accept):
    return json.dumps([*json.loads(body), model, content_type, accept]), "application/json"
"""


def serve(cloud, model):
    return Endpoint(cloud, create_config(cloud, variant(model))).serve()


def answer(endpoint, body=b"[]", **arguments):
    return json.loads(endpoint.invoke(body, **arguments)["Body"].read())


def test_scripts_may_spell_out_opt_ml(cloud):
    model = archive({"name.txt": "ada", "code/inference.py": READ})
    endpoint = deploy(cloud, model, {"DATA": "/opt/ml/model"}).serve()
    assert answer(endpoint) == ["ada", "ada", True]
    endpoint.delete()


@pytest.mark.parametrize("kind", ["prefix", "gzip"])
def test_model_data_source(cloud, kind):
    key = f"models/{unique('source')}/"
    if kind == "prefix":
        cloud.put(f"{key}name.txt", b"ada")
        cloud.put(f"{key}code/inference.py", READ.encode())
        source = {"S3Uri": f"s3://{BUCKET}/{key}", "S3DataType": "S3Prefix"}
        source["CompressionType"] = "None"
    else:
        data = archive({"name.txt": "ada", "code/inference.py": READ})
        uri = cloud.put(f"{key}any-name.tgz", data)
        source = {"S3Uri": uri, "S3DataType": "S3Object", "CompressionType": "Gzip"}
    more = cloud.put(f"{key}more/name.txt", b"grace").removesuffix("name.txt")
    channel = {"S3Uri": more, "S3DataType": "S3Prefix", "CompressionType": "None"}
    model = create_model(
        cloud,
        None,
        environment={"DATA": "/opt/ml/additional-model-data-sources/more"},
        ModelDataSource={"S3DataSource": source},
        AdditionalModelDataSources=[{"ChannelName": "more", "S3DataSource": channel}],
    )
    endpoint = serve(cloud, model)
    assert answer(endpoint) == ["ada", "grace", True]
    endpoint.delete()


@pytest.mark.parametrize("kind", ["ModelDataUrl", "S3Object", "code"])
def test_an_address_means_one_object_and_no_longer_name(cloud, kind):
    key = f"models/{unique('exact')}/model.tar.gz"
    cloud.put(f"{key}.bak", archive({"serve.py": STEP, "code/inference.py": STEP}))
    uri = f"s3://{BUCKET}/{key}"
    source = {"S3Uri": uri, "S3DataType": "S3Object", "CompressionType": "None"}
    container = {
        "ModelDataUrl": {"ModelDataUrl": uri},
        "S3Object": {"ModelDataSource": {"S3DataSource": source}},
        "code": {"environment": {"SAGEMAKER_SUBMIT_DIRECTORY": uri}},
    }
    model = create_model(cloud, None, **container[kind])
    description = Endpoint(cloud, create_config(cloud, variant(model))).wait()
    assert description["EndpointStatus"] == "Failed"
    assert f"No S3 object found at S3 URL '{uri}'" in description["FailureReason"]


def test_code_in_an_archive_of_its_own(cloud):
    source = cloud.put(f"source/{unique('s')}.tar.gz", archive({"serve.py": STEP}))
    environment = {
        "SAGEMAKER_SUBMIT_DIRECTORY": source,
        "SAGEMAKER_PROGRAM": "serve.py",
        "STEP": "one",
    }
    endpoint = serve(cloud, create_model(cloud, None, environment=environment))
    assert answer(endpoint) == ["one", "application/json", "application/json"]
    endpoint.delete()


def wheel(name, text):
    """A wheel of one module as bytes."""
    buffer = io.BytesIO()
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{name}.py", text)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return buffer.getvalue()


OFFLINE = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def test_requirements_are_installed_into_the_endpoint_alone(cloud):
    model = archive(
        {
            "code/inference.py": WORD,
            "code/requirements.txt": "wordlib==1.0\n",
            "code/wheels/wordlib-1.0-py3-none-any.whl": wheel("wordlib", "WORD = 'hello'"),
        }
    )
    links = {**OFFLINE, "PIP_FIND_LINKS": "/opt/ml/model/code/wheels"}
    endpoint = deploy(cloud, model, links).serve()
    assert endpoint.invoke(b"x")["Body"].read() == b"hello"
    with pytest.raises(ModuleNotFoundError):
        import wordlib  # noqa: F401
    endpoint.delete()


def test_requirements_that_cannot_be_installed_fail_with_the_reason(cloud):
    files = {"code/inference.py": WORD, "code/requirements.txt": "no-such-package-anywhere==1\n"}
    description = deploy(cloud, archive(files), OFFLINE).wait()
    assert description["EndpointStatus"] == "Failed"
    assert "failed to install required packages" in description["FailureReason"]
    assert "no-such-package-anywhere" in description["FailureReason"]


def pipeline(cloud, mode=None):
    """A model of two containers."""
    name = unique("pipeline")
    uri = cloud.put(f"models/{name}.tar.gz", archive({"code/inference.py": STEP}))
    fields = {"InferenceExecutionConfig": {"Mode": mode}} if mode else {}
    cloud.sagemaker.create_model(
        ModelName=name,
        ExecutionRoleArn=ROLE,
        Containers=[
            {
                "ContainerHostname": step,
                "Image": "any/image:1",
                "ModelDataUrl": uri,
                "Environment": {"STEP": step},
            }
            for step in ("first", "second")
        ],
        **fields,
    )
    return name


def test_a_pipeline_asks_one_container_after_the_other(cloud):
    endpoint = serve(cloud, pipeline(cloud))
    found = answer(endpoint, Accept="application/x-mine", content_type="text/csv")
    assert found == [
        *("first", "text/csv", "application/json"),
        *("second", "application/json", "application/x-mine"),
    ]
    with pytest.raises(cloud.runtime.exceptions.ModelError, match=r"error \(500\) from first"):
        endpoint.invoke(b"no json")
    with pytest.raises(cloud.runtime.exceptions.ValidationError, match="needs a model of the exec"):
        endpoint.invoke(b"[]", TargetContainerHostname="second")
    endpoint.delete()


def test_one_container_of_several_can_be_asked_directly(cloud):
    endpoint = serve(cloud, pipeline(cloud, mode="Direct"))
    assert answer(endpoint, TargetContainerHostname="second")[0] == "second"
    for target in ({}, {"TargetContainerHostname": "third"}):
        with pytest.raises(cloud.runtime.exceptions.ValidationError, match="of first, second;"):
            endpoint.invoke(b"[]", **target)
    endpoint.delete()


PACKAGE = "arn:aws:sagemaker:us-east-1:123456789012:model-package/p/1"


@pytest.mark.parametrize(
    ("container", "words"),
    [
        ({"Mode": "MultiModel", "ModelDataUrl": "s3://b/models/"}, "multi-model"),
        (
            {"ModelPackageName": "arn:aws:sagemaker:us-east-1:123456789012:model-package/p/1"},
            "no model registry",
        ),
        (
            {"Image": "1.dkr.ecr.x.amazonaws.com/linear-learner:1", "ModelDataUrl": "s3://b/k"},
            "built-in algorithm",
        ),
        ({"Image": "any/image:1"}, "runs scripts, not images"),
        (
            {
                "ModelDataSource": {
                    "S3DataSource": {
                        "S3Uri": "s3://b/models",
                        "S3DataType": "S3Prefix",
                        "CompressionType": "None",
                    }
                }
            },
            "must end with '/'",
        ),
    ],
    ids=["multi-model", "package", "built-in algorithm", "nothing but an image", "prefix"],
)
def test_models_that_could_not_be_served_are_refused(cloud, container, words):
    with pytest.raises(ClientError, match=words):
        cloud.sagemaker.create_model(
            ModelName=unique("refused"), ExecutionRoleArn=ROLE, PrimaryContainer=container
        )


def test_names_are_taken_once(cloud):
    model = create_model(cloud, multiplier(1))
    with pytest.raises(ClientError, match="Cannot create already existing model"):
        cloud.sagemaker.create_model(
            ModelName=model,
            ExecutionRoleArn=ROLE,
            PrimaryContainer={"Image": "any/image:1", "ModelDataUrl": "s3://b/k"},
        )
