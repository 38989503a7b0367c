"""Production variants, instances, and endpoints that change while they are asked."""

import threading
from collections import Counter

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from endpoints import Endpoint, create_config, create_model, deploy, multiplier, serverless, variant
from harness import archive, until

BROKEN = archive({"code/inference.py": "raise OSError('these weights are broken')"})
ONE = {"x": 1}


@pytest.fixture(scope="module")
def models(cloud):
    """Names of models that multiply by 2, by 3, and that do not load."""
    return [create_model(cloud, archive) for archive in (multiplier(2), multiplier(3), BROKEN)]


def test_traffic_follows_the_weights(cloud, models):
    double, triple, _ = models
    config = create_config(
        cloud,
        variant(double, "double", weight=3),
        variant(triple, "triple", weight=1),
        variant(triple, "idle", weight=0),
    )
    endpoint = Endpoint(cloud, config).serve()
    names = [endpoint.invoke(b'{"x": 1}')["InvokedProductionVariant"] for _ in range(20)]
    assert Counter(names) == {"double": 15, "triple": 5}
    chosen = endpoint.invoke(b'{"x": 1}', TargetVariant="idle")
    assert chosen["InvokedProductionVariant"] == "idle"
    with pytest.raises(cloud.runtime.exceptions.ValidationError, match="unknown"):
        endpoint.invoke(b'{"x": 1}', TargetVariant="unknown")

    endpoint.scale(
        {"VariantName": "double", "DesiredWeight": 0},
        {"VariantName": "triple", "DesiredWeight": 1, "DesiredInstanceCount": 2},
    )
    described = {v["VariantName"]: v for v in endpoint.wait()["ProductionVariants"]}
    assert described["double"]["CurrentWeight"] == 0
    assert described["triple"]["CurrentInstanceCount"] == 2
    answers = [endpoint.ask(ONE) for _ in range(6)]
    assert [answer["product"] for answer in answers] == [3] * 6
    assert sorted(Counter(answer["pid"] for answer in answers).values()) == [3, 3]
    endpoint.scale({"VariantName": "triple", "DesiredInstanceCount": 1})
    endpoint.wait()
    assert len({endpoint.ask(ONE)["pid"] for _ in range(4)}) == 1
    endpoint.delete()


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"VariantName": "unknown"}, "Could not find variant"),
        ({"VariantName": "AllTraffic", "DesiredInstanceCount": 0}, "at least 1"),
        ({"VariantName": "AllTraffic", "DesiredInstanceCount": 9}, "limit of local_cloud is 8"),
    ],
    ids=["unknown", "none", "too many"],
)
def test_impossible_capacities_are_refused(cloud, doubled, wanted, words):
    with pytest.raises(ClientError, match=words):
        doubled.scale(wanted)
    assert doubled.describe()["EndpointStatus"] == "InService"


@pytest.fixture
def doubled(cloud, models):
    endpoint = Endpoint(cloud, create_config(cloud, variant(models[0]))).serve()
    yield endpoint
    endpoint.delete()


class Callers:
    """Eight callers that ask an endpoint without a pause until they are stopped."""

    def __init__(self, endpoint):
        self.endpoint, self.stopping = endpoint, threading.Event()
        self.products, self.errors = [], []
        # One connection after the other, and no second try that could hide a failure.
        config = Config(retries={"total_max_attempts": 1}, max_pool_connections=8)
        self.runtime = endpoint.cloud.client("sagemaker-runtime", config=config)
        self.threads = [threading.Thread(target=self.call) for _ in range(8)]
        for thread in self.threads:
            thread.start()

    def call(self):
        while not self.stopping.is_set():
            try:
                answer = self.runtime.invoke_endpoint(
                    EndpointName=self.endpoint.name,
                    Body=b'{"x": 1, "pause": 0.02}',
                    ContentType="application/json",
                )
                self.products.append(b'"product": 3' in answer["Body"].read())
            except Exception as error:
                self.errors.append(error)

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join()


def test_no_request_fails_while_an_endpoint_is_updated(cloud, models, doubled):
    config = create_config(cloud, variant(models[1]))
    first = doubled.server()
    callers = Callers(doubled)
    try:
        until(lambda: len(callers.products) > 20)
        doubled.update(config)
        assert doubled.describe()["EndpointStatus"] == "Updating"
        pending = doubled.describe()["PendingDeploymentSummary"]
        assert pending["EndpointConfigName"] == config
        with pytest.raises(ClientError, match="Cannot update in-progress endpoint"):
            doubled.update(config)
        with pytest.raises(ClientError, match="in status Updating"):
            cloud.sagemaker.delete_endpoint(EndpointName=doubled.name)
        description = doubled.wait()
        assert description["EndpointStatus"] == "InService"
        assert description["EndpointConfigName"] == config
        assert "PendingDeploymentSummary" not in description
        assert doubled.ask(ONE)["product"] == 3  # In service means: it is the new one that answers.
        until(lambda: not first.is_running())
    finally:
        callers.stop()
    assert callers.errors == []
    assert {False, True} == set(callers.products)
    assert callers.products[-1] is True


def test_an_update_that_fails_leaves_the_old_model_in_service(cloud, models, doubled):
    before = doubled.describe()["EndpointConfigName"]
    product = doubled.ask(ONE)["product"]
    doubled.update(create_config(cloud, variant(models[2])))
    description = doubled.wait()
    assert description["EndpointStatus"] == "InService"
    assert "these weights are broken" in description["FailureReason"]
    assert description["EndpointConfigName"] == before
    assert doubled.ask(ONE)["product"] == product
    doubled.update(create_config(cloud, variant(models[0])))
    assert "FailureReason" not in doubled.wait()
    assert doubled.ask(ONE)["product"] == 2


def test_an_update_can_retain_what_was_scaled(cloud, models, doubled):
    doubled.scale({"VariantName": "AllTraffic", "DesiredInstanceCount": 2, "DesiredWeight": 5})
    doubled.wait()
    doubled.update(create_config(cloud, variant(models[1])), RetainAllVariantProperties=True)
    [kept] = doubled.wait()["ProductionVariants"]
    assert (kept["CurrentInstanceCount"], kept["CurrentWeight"]) == (2, 5)
    doubled.update(
        create_config(cloud, variant(models[1])),
        RetainAllVariantProperties=True,
        ExcludeRetainedVariantProperties=[{"VariantPropertyType": "DesiredInstanceCount"}],
    )
    [kept] = doubled.wait()["ProductionVariants"]
    assert (kept["CurrentInstanceCount"], kept["CurrentWeight"]) == (1, 5)


def test_an_endpoint_outlives_its_configuration_and_model(cloud):
    model = create_model(cloud, multiplier(7))
    config = create_config(cloud, variant(model))
    endpoint = Endpoint(cloud, config).serve()
    cloud.sagemaker.delete_endpoint_config(EndpointConfigName=config)
    cloud.sagemaker.delete_model(ModelName=model)
    assert endpoint.ask(ONE)["product"] == 7
    endpoint.delete()


def test_too_many_instances_are_refused(cloud, models):
    config = create_config(cloud, variant(models[0], count=9))
    with pytest.raises(cloud.sagemaker.exceptions.ResourceLimitExceeded, match="is 8 instances"):
        Endpoint(cloud, config)


def test_a_serverless_endpoint(cloud, models):
    endpoint = Endpoint(cloud, create_config(cloud, serverless(models[0], concurrency=1))).serve()
    [described] = endpoint.describe()["ProductionVariants"]
    assert described["CurrentServerlessConfig"] == {"MemorySizeInMB": 2048, "MaxConcurrency": 1}
    assert "CurrentInstanceCount" not in described
    assert endpoint.ask({"x": 4})["product"] == 8
    once = Config(retries={"total_max_attempts": 1})
    slow = threading.Thread(target=lambda: endpoint.ask({"x": 1, "pause": 2}))
    slow.start()
    runtime = cloud.client("sagemaker-runtime", config=once)

    def throttled():
        try:
            runtime.invoke_endpoint(
                EndpointName=endpoint.name, Body=b'{"x": 1}', ContentType="application/json"
            )
        except ClientError as error:
            return error.response["Error"]["Code"] == "ThrottlingException"

    until(throttled)
    slow.join()
    with pytest.raises(cloud.runtime.exceptions.ValidationError, match="oversize body"):
        endpoint.invoke(b" " * (4 << 20) + b"{}")
    endpoint.delete()


def test_a_server_that_never_answers_fails_in_time(cloud):
    slow = archive(
        {"code/inference.py": "import time\nprint('loading', flush=True)\ntime.sleep(60)"}
    )
    endpoint = deploy(cloud, slow, {"SAGEMAKER_STARTUP_TIMEOUT": "1"})
    description = endpoint.wait()
    assert description["EndpointStatus"] == "Failed"
    assert "No answer to a ping within 1 s" in description["FailureReason"]
    assert "loading" in description["FailureReason"]
    endpoint.delete()


@pytest.mark.parametrize(
    ("variants", "fields", "words"),
    [
        (["a", "a"], {}, "name of its own"),
        (["a"], {"ShadowProductionVariants": ["b"]}, "ShadowProductionVariants"),
        (
            ["a"],
            {
                "DataCaptureConfig": {
                    "InitialSamplingPercentage": 1,
                    "DestinationS3Uri": "https://x",
                    "CaptureOptions": [{"CaptureMode": "Input"}],
                }
            },
            "s3:// address",
        ),
        (["a"], {"AsyncInferenceConfig": {"OutputConfig": {}}}, "S3OutputPath"),
    ],
    ids=["names", "shadow", "capture", "async"],
)
def test_configurations_that_cannot_be_carried_out(cloud, models, variants, fields, words):
    fields = {
        name: [variant(models[0], v) for v in value] if isinstance(value, list) else value
        for name, value in fields.items()
    }
    with pytest.raises(ClientError, match=words):
        create_config(cloud, *[variant(models[0], name) for name in variants], **fields)


def test_update_policies_that_are_not_offered(cloud, models, doubled):
    routing = {"Type": "LINEAR", "WaitIntervalInSeconds": 1}
    policy = {"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing}}
    with pytest.raises(ClientError, match="ALL_AT_ONCE only"):
        doubled.update(create_config(cloud, variant(models[0])), DeploymentConfig=policy)
