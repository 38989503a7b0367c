"""What the tests of hosting and batch transform share: models and endpoints made with boto3."""

import json
import uuid

import psutil
from botocore.exceptions import ClientError
from harness import ROLE, archive, until

MULTIPLY = """
import json, os, time

def model_fn(model_dir):
    with open(os.path.join(model_dir, "factor.json")) as file:
        return json.load(file)

def input_fn(body, content_type):
    return json.loads(body) if content_type == "application/json" else None

def predict_fn(data, model):
    if data is None:
        return None
    if data == "crash":
        os._exit(3)
    time.sleep(data.get("pause", 0))
    return {"product": data["x"] * model, "pid": os.getpid()}

def output_fn(prediction, accept, context):
    if prediction is None:
        context.set_response_status(415, "Unsupported Media Type")
        return "only JSON is understood", "text/plain"
    return json.dumps(prediction), accept
"""


def multiplier(factor):
    """A model archive that multiplies by `factor`."""
    return archive({"factor.json": json.dumps(factor), "code/inference.py": MULTIPLY})


def unique(prefix):
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def create_model(cloud, model, image="any/image:1", environment=None, **container):
    """Create a model of an archive and return its name."""
    name = unique("model")
    if model is not None:
        container["ModelDataUrl"] = cloud.put(f"models/{name}/model.tar.gz", model)
    cloud.sagemaker.create_model(
        ModelName=name,
        ExecutionRoleArn=ROLE,
        PrimaryContainer={"Image": image, "Environment": environment or {}, **container},
    )
    return name


def variant(model, name="AllTraffic", count=1, weight=1.0, **fields):
    """A production variant of a model."""
    return {
        "VariantName": name,
        "ModelName": model,
        "InstanceType": "ml.m5.large",
        "InitialInstanceCount": count,
        "InitialVariantWeight": weight,
        **fields,
    }


def serverless(model, concurrency):
    """A serverless production variant of a model."""
    config = {"MemorySizeInMB": 2048, "MaxConcurrency": concurrency}
    return {"VariantName": "AllTraffic", "ModelName": model, "ServerlessConfig": config}


def create_config(cloud, *variants, **fields):
    """Create an endpoint configuration and return its name."""
    name = unique("config")
    cloud.sagemaker.create_endpoint_config(
        EndpointConfigName=name, ProductionVariants=list(variants), **fields
    )
    return name


class Endpoint:
    """One endpoint, made by boto3 unless it is called by the name of one that exists."""

    def __init__(self, cloud, config=None, name=None, **fields):
        self.cloud = cloud
        self.name = name or unique("endpoint")
        if name is None:
            cloud.sagemaker.create_endpoint(
                EndpointName=self.name, EndpointConfigName=config, **fields
            )

    def describe(self):
        return self.cloud.sagemaker.describe_endpoint(EndpointName=self.name)

    def wait(self):
        """The description of the endpoint once nothing is in progress."""
        busy = ("Creating", "Updating")
        return until(lambda: (d := self.describe())["EndpointStatus"] not in busy and d)

    def serve(self):
        """The endpoint itself, in service."""
        description = self.wait()
        assert description["EndpointStatus"] == "InService", description.get("FailureReason")
        return self

    def update(self, config, **fields):
        self.cloud.sagemaker.update_endpoint(
            EndpointName=self.name, EndpointConfigName=config, **fields
        )

    def scale(self, *wanted):
        self.cloud.sagemaker.update_endpoint_weights_and_capacities(
            EndpointName=self.name, DesiredWeightsAndCapacities=list(wanted)
        )

    def invoke(self, body, content_type="application/json", **arguments):
        return self.cloud.runtime.invoke_endpoint(
            EndpointName=self.name, Body=body, ContentType=content_type, **arguments
        )

    def ask(self, data, **arguments):
        return json.loads(self.invoke(json.dumps(data).encode(), **arguments)["Body"].read())

    def server(self):
        """The process of the model server."""
        return psutil.Process(self.ask({"x": 1})["pid"])

    def lines(self, prefix="AllTraffic/"):
        return self.cloud.lines(f"/aws/sagemaker/Endpoints/{self.name}", prefix)

    def delete(self):
        self.cloud.sagemaker.delete_endpoint(EndpointName=self.name)
        until(self.is_gone)

    def is_gone(self):
        try:
            self.describe()
        except ClientError as error:
            return error.response["Error"]["Code"] == "ValidationException"
        return False


def deploy(cloud, model, environment=None, **fields):
    """An endpoint of one instance for a model archive, not yet in service."""
    name = create_model(cloud, model, environment=environment)
    return Endpoint(cloud, create_config(cloud, variant(name), **fields))
