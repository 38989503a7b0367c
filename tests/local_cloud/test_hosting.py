"""Models, endpoint configurations, endpoints and their invocation."""

import gzip
import io
import json
import os
import signal
import tarfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from botocore.exceptions import ClientError
from endpoints import MULTIPLY, deploy, multiplier
from harness import archive, processes_with, until

WITH_CONTEXT = """
def model_fn(model_dir, context):
    return context.system_properties["model_dir"] == model_dir

def transform_fn(model, body, content_type, accept, context):
    context.set_response_status(400 if b"bad" in body else 200, "")
    return f"{model} {len(body)} {context.get_request_header(0, 'Content-Type')}", "text/plain"
"""


@pytest.fixture(scope="module")
def multiply(cloud):
    """An endpoint in service that multiplies by three."""
    endpoint = deploy(cloud, multiplier(3))
    yield endpoint.serve()
    endpoint.delete()


def test_invocation(multiply):
    answer = multiply.invoke(b'{"x": 14}', Accept="application/json")
    assert answer["ContentType"] == "application/json"
    assert answer["InvokedProductionVariant"] == "AllTraffic"
    assert json.loads(answer["Body"].read())["product"] == 42


def test_the_handler_s_refusal_comes_back_with_status_and_message(cloud, multiply):
    with pytest.raises(cloud.runtime.exceptions.ModelError) as refused:
        multiply.invoke(b"1,2", content_type="text/csv")
    assert refused.value.response["OriginalStatusCode"] == 415
    assert refused.value.response["OriginalMessage"] == "only JSON is understood"
    assert "client error (415) from primary" in str(refused.value)


def test_a_fault_of_the_handler_is_a_500_and_its_trace_is_in_the_log(cloud, multiply):
    with pytest.raises(cloud.runtime.exceptions.ModelError) as failed:
        multiply.invoke(b'{"y": 14}')
    assert failed.value.response["OriginalStatusCode"] == 500
    group = f"/aws/sagemaker/Endpoints/{multiply.name}"
    until(lambda: "KeyError: 'x'" in cloud.lines(group, "AllTraffic/"))


def test_twenty_invocations_at_once(multiply):
    started = time.monotonic()
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda n: multiply.ask({"x": n, "pause": 0.5}), range(20)))
    assert [answer["product"] for answer in answers] == [3 * n for n in range(20)]
    assert time.monotonic() - started < 20 * 0.5  # One after the other it would take longer.


def test_latency_of_one_invocation(multiply, capsys):
    multiply.ask({"x": 1})
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        multiply.ask({"x": 1})
        seconds.append(time.perf_counter() - started)
    median = sorted(seconds)[10]
    with capsys.disabled():
        print(f"\nInvokeEndpoint, median of 20: {median * 1000:.1f} ms")
    assert median < 0.5


def test_a_crashed_server_is_started_again(cloud, multiply):
    first = multiply.server()
    with pytest.raises(cloud.runtime.exceptions.ModelError, match="no answer"):
        multiply.invoke(b'"crash"')

    def answers():
        try:
            return multiply.server().pid != first.pid
        except cloud.runtime.exceptions.ModelError:
            return False

    until(answers)
    os.kill(multiply.server().pid, signal.SIGKILL)
    until(answers)
    assert multiply.describe()["EndpointStatus"] == "InService"


# Its second start takes a minute.
SLOW_ONCE = """
import os, time

def model_fn(model_dir):
    starts = os.path.join(model_dir, "starts")
    with open(starts, "a") as file:
        file.write("x")
    if os.path.getsize(starts) == 2:
        time.sleep(60)

def transform_fn(model, body, content_type, accept):
    return str(os.getpid())
"""


def test_a_server_that_starts_again_too_slowly_is_replaced(cloud):
    model = archive({"code/inference.py": SLOW_ONCE})
    endpoint = deploy(cloud, model, {"SAGEMAKER_STARTUP_TIMEOUT": "4"}).serve()
    os.kill(int(endpoint.invoke(b"x")["Body"].read()), signal.SIGKILL)

    def answers():
        try:
            return endpoint.invoke(b"x")
        except cloud.runtime.exceptions.ModelError:
            return False

    until(answers)
    endpoint.delete()


def test_the_model_server_s_port_is_local_and_wants_its_token(multiply):
    listening = [c for c in multiply.server().net_connections() if c.status == "LISTEN"]
    assert [connection.laddr.ip for connection in listening] == ["127.0.0.1"]
    url = f"http://127.0.0.1:{listening[0].laddr.port}"
    for path in ("/ping", "/invocations"):
        for headers in ({}, {"Authorization": "Bearer guess"}, {"Origin": "http://evil"}):
            request = urllib.request.Request(url + path, headers=headers)
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=5)
            assert refused.value.code == 403
            assert not [h for h in refused.value.headers if h.lower().startswith("access-control")]


def test_handlers_with_a_context_parameter(cloud):
    endpoint = deploy(
        cloud, archive({"code/serve.py": WITH_CONTEXT}), {"SAGEMAKER_PROGRAM": "serve.py"}
    )
    assert endpoint.wait()["EndpointStatus"] == "InService"
    answer = endpoint.invoke(b"\x00\x01", content_type="image/png")
    assert answer["Body"].read() == b"True 2 image/png"
    with pytest.raises(cloud.runtime.exceptions.ModelError) as refused:
        endpoint.invoke(b"bad", content_type="image/png")
    assert refused.value.response["OriginalStatusCode"] == 400
    endpoint.delete()


def link_archive():
    """An archive with a link that leads out of the model's folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo("code")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(info)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (b"no archive", "model.tar.gz cannot be unpacked"),
        (gzip.decompress(multiplier(2)), "model.tar.gz cannot be unpacked"),
        (archive({"../outside.txt": "1"}), "outside"),
        (link_archive(), "model.tar.gz cannot be unpacked"),
        (archive({"factor.json": "1"}), "The model has no code/inference.py"),
        (archive({"code/inference.py": "def predict_fn(d, m): pass"}), "provide a model_fn"),
        (archive({"code/inference.py": MULTIPLY}), "factor.json"),
    ],
    ids=["broken", "not gzip", "outside", "link", "no script", "no model_fn", "model_fn raises"],
)
def test_a_model_that_cannot_be_loaded_fails_with_the_reason(cloud, model, words):
    endpoint = deploy(cloud, model)
    description = endpoint.wait()
    assert description["EndpointStatus"] == "Failed"
    assert words in description["FailureReason"]
    assert "InternalFailure" not in description["FailureReason"]
    with pytest.raises(ClientError, match="status Failed"):
        endpoint.invoke(b"{}")
    endpoint.delete()


def test_deleting_frees_process_port_and_folder(cloud):
    endpoint = deploy(cloud, multiplier(2))
    endpoint.wait()
    server = endpoint.server()
    folder = server.cwd()
    marker = server.environ()["LOCAL_CLOUD_CONTAINER"]
    endpoint.delete()
    assert processes_with("LOCAL_CLOUD_CONTAINER", marker) == []
    assert not os.path.exists(folder)
    with pytest.raises(ClientError, match="not found"):
        endpoint.invoke(b"{}")


def test_many_endpoints_leave_no_thread_handle_or_folder(cloud):
    server = psutil.Process(cloud.server["pid"])
    folder = os.path.join(cloud.server["work_folder"], "endpoints")

    def resources():
        return server.num_threads(), server.num_fds(), len(os.listdir(folder))

    def one():
        endpoint = deploy(cloud, multiplier(2)).serve()
        endpoint.ask({"x": 1})
        endpoint.delete()

    one()  # What is made once for all endpoints is there now.
    before = resources()
    for _ in range(6):
        one()
    # Less than one each; a connection or two more may be kept open for the next request.
    until(lambda: all(now <= then + 3 for now, then in zip(resources(), before)))


def test_deleting_while_it_is_created(cloud):
    slow = "import time\ntime.sleep(60)"
    endpoint = deploy(cloud, archive({"code/inference.py": slow}))
    assert endpoint.describe()["EndpointStatus"] == "Creating"
    endpoint.delete()


def test_secrets_are_not_in_arguments(cloud, multiply):
    environment = multiply.server().environ()
    secrets = [cloud.env["AWS_SECRET_ACCESS_KEY"], environment["LOCAL_CLOUD_TOKEN"]]
    commands = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    for secret in secrets:
        assert not any(secret in command for command in commands)
        assert secret not in (cloud.home / "server.log").read_text()
