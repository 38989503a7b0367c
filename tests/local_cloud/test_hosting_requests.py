"""The runtime API: limits, headers, time-outs, data capture and asynchronous requests."""

import base64
import json
import threading

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from endpoints import Endpoint, create_config, create_model, deploy, unique, variant
from harness import BUCKET, archive, until

ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
TALK = f"""
import json, time

def model_fn(model_dir):
    return None

def transform_fn(model, body, content_type, accept, context):
    text = body if isinstance(body, str) else body.decode("latin-1")
    if text.startswith("sleep"):
        time.sleep(float(text.split()[1]))
    if text.startswith("status"):
        context.set_response_status(int(text.split()[1]), "as asked")
    attributes = context.get_request_header(0, "{ATTRIBUTES}")
    if attributes:
        context.set_response_header(0, "{ATTRIBUTES}", "seen " + attributes)
    answer = {{"bytes": len(body), "type": content_type}}
    return json.dumps({{**answer, "seen": attributes}} if attributes else answer), accept
"""
CAPTURE = {
    "EnableCapture": True,
    "InitialSamplingPercentage": 100,
    "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
    "CaptureContentTypeHeader": {
        "CsvContentTypes": ["text/csv"],
        "JsonContentTypes": ["application/json"],
    },
}


@pytest.fixture(scope="module")
def model(cloud):
    return create_model(cloud, archive({"code/inference.py": TALK}))


@pytest.fixture(scope="module")
def talk(cloud, model):
    endpoint = Endpoint(cloud, create_config(cloud, variant(model))).serve()
    yield endpoint
    endpoint.delete()


def test_custom_attributes_go_both_ways(talk):
    answer = talk.invoke(b"x", CustomAttributes="trace=1", InferenceId="abc")
    assert answer["CustomAttributes"] == "seen trace=1"
    assert answer["ContentType"] == "application/json"
    assert "CustomAttributes" not in talk.invoke(b"x")


@pytest.mark.parametrize("status", [400, 418, 503])
def test_the_container_s_status_comes_back_in_a_model_error(cloud, talk, status):
    with pytest.raises(cloud.runtime.exceptions.ModelError) as refused:
        talk.invoke(f"status {status}".encode())
    response = refused.value.response
    kind = "client" if status < 500 else "server"
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert response["OriginalStatusCode"] == status
    assert json.loads(response["OriginalMessage"])["type"] == "application/json"
    assert response["LogStreamArn"].endswith(f"log-group:/aws/sagemaker/Endpoints/{talk.name}")
    assert f"Received {kind} error ({status}) from primary with message" in str(refused.value)


def test_odd_statuses_leave_the_connection_in_order(cloud, talk):
    for _ in range(3):
        assert talk.invoke(b"status 204")["Body"].read() == b""
        assert json.loads(talk.invoke(b"x")["Body"].read())["bytes"] == 1
    with pytest.raises(cloud.runtime.exceptions.ModelError, match=r"server error \(500\)"):
        talk.invoke(b"status 100")


@pytest.mark.parametrize("size", [6_291_456, 6_291_457])
def test_the_limit_of_a_payload(talk, size):
    if size == 6_291_456:
        answer = json.loads(talk.invoke(b"x" * size)["Body"].read())
        assert answer["bytes"] == size
        return
    with pytest.raises(ClientError, match="HTTP content length exceeded 6291456") as refused:
        talk.invoke(b"x" * size)
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 413


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"TargetModel": "m.tar.gz"}, "multi-model"),
        ({"InferenceComponentName": "c"}, "inference components"),
        ({"CustomAttributes": "x" * 1025}, "1024"),
        ({"TargetVariant": "nobody"}, "nobody"),
        ({"EndpointName": "nobody"}, "Endpoint nobody of account 123456789012 not found"),
    ],
    ids=["model", "component", "long", "variant", "endpoint"],
)
def test_requests_that_are_refused(cloud, talk, arguments, words):
    request = {"EndpointName": talk.name, "Body": b"x", **arguments}
    with pytest.raises(cloud.runtime.exceptions.ValidationError, match=words):
        cloud.runtime.invoke_endpoint(**request)


def test_streams_are_refused_with_the_reason(cloud, talk):
    with pytest.raises(ClientError, match="does not stream"):
        cloud.runtime.invoke_endpoint_with_response_stream(EndpointName=talk.name, Body=b"x")


def test_an_answer_that_takes_too_long(cloud):
    model = archive({"code/inference.py": TALK})
    endpoint = deploy(cloud, model, {"SAGEMAKER_MODEL_SERVER_TIMEOUT": "1"}).serve()
    once = cloud.client("sagemaker-runtime", config=Config(retries={"total_max_attempts": 1}))
    with pytest.raises(cloud.runtime.exceptions.ModelError, match="invocation timed out") as late:
        once.invoke_endpoint(EndpointName=endpoint.name, Body=b"sleep 3")
    assert late.value.response["OriginalStatusCode"] == 0
    endpoint.delete()


def test_one_worker_answers_one_request_at_a_time(cloud):
    script = """
import time

busy = []

def model_fn(model_dir):
    return None

def transform_fn(model, body, content_type, accept):
    busy.append(1)
    time.sleep(0.05)
    count = len(busy)
    busy.pop()
    return str(count)
"""
    model = archive({"code/inference.py": script})
    endpoint = deploy(cloud, model, {"SAGEMAKER_MODEL_SERVER_WORKERS": "1"}).serve()
    counts = []
    threads = [
        threading.Thread(target=lambda: counts.append(endpoint.invoke(b"x")["Body"].read()))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [b"1"] * 6
    endpoint.delete()


def objects(cloud, prefix):
    found = cloud.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return {entry["Key"]: cloud.get(entry["Key"]) for entry in found}


def records(cloud, prefix):
    """All captured records below a prefix, in the order of their keys."""
    texts = [body.decode() for _, body in sorted(objects(cloud, prefix).items())]
    return [json.loads(line) for text in texts for line in text.splitlines()]


def test_data_capture(cloud, model):
    prefix = unique("capture")
    capture = {**CAPTURE, "DestinationS3Uri": f"s3://{BUCKET}/{prefix}"}
    config = create_config(cloud, variant(model), DataCaptureConfig=capture)
    endpoint = Endpoint(cloud, config).serve()
    described = endpoint.describe()["DataCaptureConfig"]
    assert described["CaptureStatus"] == "Started"
    assert described["CurrentSamplingPercentage"] == 100
    endpoint.invoke(b"1,2", "text/csv", CustomAttributes="trace=1", InferenceId="my-id")
    endpoint.invoke(b"\x00\xff", "image/png")
    with pytest.raises(cloud.runtime.exceptions.ModelError):
        endpoint.invoke(b"status 400")
    until(lambda: len(records(cloud, prefix)) == 2)
    endpoint.invoke(b"[1]")
    endpoint.delete()  # Writes what waits.
    first, second, third = records(cloud, prefix)
    assert first["captureData"]["endpointInput"] == {
        "observedContentType": "text/csv",
        "mode": "INPUT",
        "data": "1,2",
        "encoding": "CSV",
    }
    assert first["captureData"]["endpointOutput"] == {
        "observedContentType": "application/json",
        "mode": "OUTPUT",
        "data": '{"bytes": 3, "type": "text/csv", "seen": "trace=1"}',
        "encoding": "JSON",
    }
    assert first["eventVersion"] == "0"
    assert first["eventMetadata"]["inferenceId"] == "my-id"
    assert first["eventMetadata"]["customAttributes"] == ["trace=1"]
    assert second["captureData"]["endpointInput"]["encoding"] == "BASE64"
    assert base64.b64decode(second["captureData"]["endpointInput"]["data"]) == b"\x00\xff"
    assert third["captureData"]["endpointInput"]["data"] == "[1]"
    [key, *_] = objects(cloud, prefix)
    hour = first["eventMetadata"]["inferenceTime"][:13].replace("-", "/").replace("T", "/")
    assert key.startswith(f"{prefix}/{endpoint.name}/AllTraffic/{hour}/")
    assert key.endswith(".jsonl")


def test_data_capture_of_a_sample_and_of_answers_only(cloud, model):
    prefix = unique("capture")
    capture = {
        **CAPTURE,
        "DestinationS3Uri": f"s3://{BUCKET}/{prefix}",
        "InitialSamplingPercentage": 50,
        "CaptureOptions": [{"CaptureMode": "Output"}],
    }
    config = create_config(cloud, variant(model), DataCaptureConfig=capture)
    endpoint = Endpoint(cloud, config).serve()
    for _ in range(60):
        endpoint.invoke(b"1")
    endpoint.delete()
    found = records(cloud, prefix)
    assert 10 < len(found) < 50  # Out of it once in ten million runs.
    assert all(list(record["captureData"]) == ["endpointOutput"] for record in found)


@pytest.fixture(scope="module")
def patient(cloud, model):
    """An asynchronous endpoint and the prefix of what it writes."""
    prefix = unique("async")
    output = {"S3OutputPath": f"s3://{BUCKET}/{prefix}/out"}
    output["S3FailurePath"] = f"s3://{BUCKET}/{prefix}/failed"
    config = create_config(
        cloud,
        variant(model),
        AsyncInferenceConfig={
            "OutputConfig": output,
            "ClientConfig": {"MaxConcurrentInvocationsPerInstance": 2},
        },
    )
    endpoint = Endpoint(cloud, config).serve()
    assert endpoint.describe()["AsyncInferenceConfig"]["OutputConfig"] == output
    yield endpoint, prefix
    endpoint.delete()


def invoke_async(cloud, endpoint, body, **arguments):
    location = cloud.put(f"async-input/{unique('in')}", body)
    return cloud.runtime.invoke_endpoint_async(
        EndpointName=endpoint.name, InputLocation=location, **arguments
    )


def stored(cloud, location):
    """The object at an address, as soon as there is one."""
    key = location.removeprefix(f"s3://{BUCKET}/")
    return until(lambda: objects(cloud, key).get(key))


def test_asynchronous_requests(cloud, patient):
    endpoint, prefix = patient
    answers = [
        invoke_async(
            cloud,
            endpoint,
            b"x" * n,
            ContentType="text/plain",
            InferenceId=f"id-{n}",
            CustomAttributes=f"n={n}",
        )
        for n in range(1, 7)
    ]
    assert [answer["InferenceId"] for answer in answers] == [f"id-{n}" for n in range(1, 7)]
    assert answers[0]["ResponseMetadata"]["HTTPStatusCode"] == 202
    for n, answer in enumerate(answers, 1):
        assert answer["OutputLocation"].startswith(f"s3://{BUCKET}/{prefix}/out/")
        body = json.loads(stored(cloud, answer["OutputLocation"]))
        assert body == {"bytes": n, "type": "text/plain", "seen": f"n={n}"}


@pytest.mark.parametrize(
    ("body", "arguments", "words"),
    [
        (b"status 400", {}, b'"bytes": 10'),
        (b"sleep 3", {"InvocationTimeoutSeconds": 1}, b"invocation timed out"),
    ],
    ids=["refused", "too slow"],
)
def test_asynchronous_failures_become_objects(cloud, patient, body, arguments, words):
    answer = invoke_async(cloud, patient[0], body, **arguments)
    assert words in stored(cloud, answer["FailureLocation"])
    assert objects(cloud, answer["OutputLocation"].removeprefix(f"s3://{BUCKET}/")) == {}


def test_an_asynchronous_input_that_is_not_there(cloud, patient):
    answer = cloud.runtime.invoke_endpoint_async(
        EndpointName=patient[0].name, InputLocation=f"s3://{BUCKET}/nothing"
    )
    assert b"cannot be read" in stored(cloud, answer["FailureLocation"])


def test_an_asynchronous_endpoint_takes_no_other_requests(cloud, patient, talk):
    with pytest.raises(cloud.runtime.exceptions.ValidationError, match="is asynchronous"):
        patient[0].invoke(b"x")
    with pytest.raises(ClientError, match="not asynchronous"):
        invoke_async(cloud, talk, b"x")


def test_no_address_but_of_s3_is_read(cloud, patient):
    with pytest.raises(ClientError, match="must be an s3:// address"):
        cloud.runtime.invoke_endpoint_async(
            EndpointName=patient[0].name, InputLocation=f"{cloud.url}/{BUCKET}/x"
        )
    with pytest.raises(ClientError, match="must be an s3:// address"):
        cloud.runtime.invoke_endpoint_async(
            EndpointName=patient[0].name, InputLocation="https://example.com/x"
        )


# Its second start takes three seconds.
CRASHES = """
import os, time

def model_fn(model_dir):
    flag = os.path.join(model_dir, "crashed")
    if os.path.exists(flag):
        time.sleep(3)
    return flag

def transform_fn(flag, body, content_type, accept):
    if "crash" in str(body):
        open(flag, "w").close()
        os._exit(3)
    return "fine"
"""
# Answers how many requests of one name are seen while it waits for a second one.
MEETS = """
import os, pathlib, time, uuid

def model_fn(model_dir):
    return pathlib.Path(os.environ["FOLDER"])

def transform_fn(folder, body, content_type, accept):
    name, seconds = (body if isinstance(body, str) else body.decode()).split()
    (folder / f"{name}-{uuid.uuid4().hex}").touch()
    deadline = time.monotonic() + float(seconds)
    while len(list(folder.glob(f"{name}-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    return str(len(list(folder.glob(f"{name}-*"))))
"""


def one_at_a_time(cloud, prefix, script, environment=None):
    """An asynchronous endpoint whose instances work on one request each."""
    output = {"S3OutputPath": f"s3://{BUCKET}/{prefix}", "S3FailurePath": f"s3://{BUCKET}/{prefix}"}
    config = {
        "OutputConfig": output,
        "ClientConfig": {"MaxConcurrentInvocationsPerInstance": 1},
    }
    model = archive({"code/inference.py": script})
    return deploy(cloud, model, environment, AsyncInferenceConfig=config).serve()


def test_asynchronous_requests_wait_for_a_crashed_server(cloud):
    prefix = unique("async")
    endpoint = one_at_a_time(cloud, prefix, CRASHES)
    # botocore, not the service here, takes no time to live below a minute.
    runtime = cloud.client("sagemaker-runtime", config=Config(parameter_validation=False))

    def put(body, **arguments):
        return runtime.invoke_endpoint_async(
            EndpointName=endpoint.name, Body=body, ContentType="text/plain", **arguments
        )

    crash, late, patient = put(b"crash"), put(b"x", RequestTTLSeconds=1), put(b"x")
    assert b"no answer from the model server" in stored(cloud, crash["FailureLocation"])
    assert b"expired" in stored(cloud, late["FailureLocation"])
    assert stored(cloud, patient["OutputLocation"]) == b"fine"
    again, _ = put(b"crash"), put(b"x")
    stored(cloud, again["FailureLocation"])
    endpoint.delete()
    assert len(objects(cloud, prefix)) == 4


def test_more_instances_work_on_more_asynchronous_requests(cloud, tmp_path):
    endpoint = one_at_a_time(cloud, unique("async"), MEETS, {"FOLDER": str(tmp_path)})

    def met(name, seconds):
        bodies = [f"{name} {seconds}".encode()] * 2
        answers = [invoke_async(cloud, endpoint, body, ContentType="text/csv") for body in bodies]
        return [stored(cloud, answer["OutputLocation"]) for answer in answers]

    for count, seconds, seen in [(2, 30, [b"2", b"2"]), (1, 0.5, [b"1", b"2"])]:
        endpoint.scale({"VariantName": "AllTraffic", "DesiredInstanceCount": count})
        endpoint.wait()
        assert met(f"with-{count}", seconds) == seen
    endpoint.delete()
