"""The handler contract: the same archive answers as under AWS's own inference toolkit.

Every case runs twice, in an endpoint of the local cloud and in `sagemaker_inference`'s own
`Transformer`, in a process of its own because it imports the script into the interpreter.
"""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from endpoints import Endpoint, create_config, create_model, deploy, variant
from harness import archive

JSON, CSV, NPY, NPZ = "application/json", "text/csv", "application/x-npy", "application/x-npz"
PLAIN = """
def model_fn(model_dir):
    return 2

def predict_fn(data, model):
    if data.size == 0:
        raise KeyError("nothing to predict")
    return data * model
"""
CONTEXT = """
import json

def model_fn(model_dir, context):
    return sorted(context.system_properties)[0]

def input_fn(body, content_type, context):
    header = context.get_request_header(0, "Content-Type")
    names = {k.lower() for k in context.request_processor[0].get_request_properties()}
    return [content_type, header, "content-type" in names, type(body).__name__]

def predict_fn(data, model):
    return [*data, model]

def output_fn(prediction, accept, context):
    if "text/plain" in prediction:
        context.set_response_status(code=422, phrase="No text")
        return json.dumps({"error": "no text"}), "application/json"
    return json.dumps([*prediction, accept])
"""
ERRORS = """
from sagemaker_inference import content_types, decoder, encoder, errors

class TooLarge(errors.BaseInferenceToolkitError):
    def __init__(self):
        super().__init__(413, "the picture is too large", "Too Large")

class Refused(Exception):
    status_code = 400

def model_fn(model_dir):
    return None

def input_fn(body, content_type):
    return decoder.decode(body, content_type).tolist()

def predict_fn(data, model):
    if data == [1]:
        raise TooLarge()
    if data == [2]:
        raise errors.GenericInferenceToolkitError(503)
    if data == [3]:
        raise Refused("an exception with a status of its own")
    return data

def output_fn(prediction, accept):
    return encoder.encode(prediction, accept), accept
"""
TRANSFORM = """
def model_fn(model_dir):
    return b"m"

def transform_fn(model, body, content_type, accept):
    if body == "too few":
        return {"a": [1, None]}
    return model + (body.encode() if isinstance(body, str) else body)
"""
MISFIT = """
def model_fn(model_dir):
    return 1

def predict_fn(data):
    return data
"""
SCRIPTS = {
    "plain": PLAIN,
    "context": CONTEXT,
    "errors": ERRORS,
    "transform": TRANSFORM,
    "misfit": MISFIT,
}
REFERENCE = """
import base64, json, os, sys, types

folder, cases = sys.argv[1], json.loads(sys.stdin.read())
sys.path.insert(0, os.path.join(folder, "code"))
from sagemaker_inference.transformer import Transformer

class Context:
    def __init__(self):
        self.system_properties = {"model_dir": folder, "batch_size": 1}
    def begin(self, headers):
        self.headers, self.status, self.kind = headers, 200, None
        properties = types.SimpleNamespace(get_request_properties=lambda: headers)
        self.request_processor = [properties]
    def get_request_header(self, idx, key):
        return self.headers.get(key)
    def set_response_status(self, code=200, phrase="", idx=0):
        self.status = code
    def set_response_content_type(self, idx, value):
        self.kind = value

context, transformer, answers = Context(), Transformer(), []
for headers, body in cases:
    context.begin(headers)
    [answer] = transformer.transform([{"body": base64.b64decode(body)}], context)
    if not isinstance(answer, (str, bytes)):
        answer = json.dumps(answer)
    answer = answer.encode() if isinstance(answer, str) else answer
    answers.append([context.status, context.kind, base64.b64encode(answer).decode()])
print(json.dumps(answers))
"""


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, np.array(array))
    return buffer.getvalue()


def npz():
    import scipy.sparse

    buffer = io.BytesIO()
    scipy.sparse.save_npz(buffer, scipy.sparse.csr_matrix(np.eye(2)))
    return buffer.getvalue()


# name: script, content type, accepted types, body
CASES = {
    "json": ("plain", JSON, JSON, b"[[1, 2], [3, 4.5]]"),
    "json of any kind": ("plain", JSON, "*/*", b"[1]"),
    "no accept": ("plain", JSON, None, b"[1]"),
    "csv": ("plain", CSV, CSV, b"1,2\n3,4\n"),
    "csv to npy": ("plain", CSV, NPY, b"1.5,2\n"),
    "npy": ("plain", NPY, NPY, npy([[1, 2]])),
    "npy to json": ("plain", NPY, JSON, npy([1.5])),
    "npz": ("plain", NPZ, JSON, npz()),
    "one of several": ("plain", JSON, "image/png, text/csv", b"[1, 2]"),
    "accept not offered": ("plain", JSON, "image/png", b"[1]"),
    "unknown content type": ("plain", "image/png", JSON, b"\x89PNG"),
    "parameter in the type": ("plain", "application/json; charset=utf-8", JSON, b"[1]"),
    "broken json": ("plain", JSON, JSON, b"{"),
    "not utf-8": ("plain", JSON, JSON, b"\xff\xfe"),
    "broken npy": ("plain", NPY, JSON, b"no array"),
    "handler raises": ("plain", JSON, JSON, b"[]"),
    "context": ("context", JSON, JSON, b"[]"),
    "context of bytes": ("context", "image/png", "*/*", b"\x00"),
    "status by context": ("context", "text/plain", JSON, b"x"),
    "toolkit's own modules": ("errors", JSON, CSV, b"[5, 6]"),
    "own toolkit error": ("errors", JSON, JSON, b"[1]"),
    "generic toolkit error": ("errors", JSON, JSON, b"[2]"),
    "status on another exception": ("errors", JSON, JSON, b"[3]"),
    "transform bytes": ("transform", "image/png", "image/png", b"\x01\x02"),
    "transform text": ("transform", CSV, JSON, b"1,2"),
    "transform an object": ("transform", CSV, JSON, b"too few"),
    "too few parameters": ("misfit", JSON, JSON, b"[1]"),
}


# The toolkit would unpickle what is no array; the local cloud never does.
OWN_WORDS = ("broken npy",)


@pytest.fixture(scope="module")
def endpoints(cloud):
    """One endpoint a script."""
    pytest.importorskip("sagemaker_inference")
    started = {
        name: deploy(cloud, archive({"code/inference.py": script}))
        for name, script in SCRIPTS.items()
    }
    for endpoint in started.values():
        endpoint.serve()
    yield started
    for endpoint in started.values():
        endpoint.delete()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """What the toolkit itself answers: {case: (status, content type, body)}."""
    pytest.importorskip("sagemaker_inference")
    answers = {}
    for name, script in SCRIPTS.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "code").mkdir()
        (folder / "code" / "inference.py").write_text(script)
        answers.update(ask_toolkit(folder, [case for case in CASES if CASES[case][0] == name]))
    return answers


def ask_toolkit(folder, cases):
    import base64

    requests = []
    for case in cases:
        _, content_type, accept, body = CASES[case]
        headers = {"Content-Type": content_type, **({"Accept": accept} if accept else {})}
        requests.append([headers, base64.b64encode(body).decode()])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REFERENCE, str(folder)],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return {case: (a, b, base64.b64decode(c)) for case, (a, b, c) in zip(cases, found)}


@pytest.mark.parametrize("case", CASES)
def test_answers_as_the_toolkit_does(cloud, endpoints, reference, case):
    script, content_type, accept, body = CASES[case]
    status, kind, expected = reference[case]
    arguments = {"Accept": accept} if accept else {}
    if status < 300:
        answer = endpoints[script].invoke(body, content_type, **arguments)
        assert answer["Body"].read() == expected
        assert answer["ContentType"] == kind
        return
    with pytest.raises(cloud.runtime.exceptions.ModelError) as refused:
        endpoints[script].invoke(body, content_type, **arguments)
    assert refused.value.response["OriginalStatusCode"] == status
    message = refused.value.response["OriginalMessage"]
    if "Traceback" not in expected.decode():
        assert message == expected.decode()
        return
    assert "Traceback (most recent call last)" in message
    if case not in OWN_WORDS:
        assert message.splitlines()[0] == expected.decode().splitlines()[0]


NET = """
import torch

torch.jit.script(torch.nn.Linear(2, 1, bias=False)).save("model.pt")
"""


def test_pytorch_images_bring_default_handlers(cloud, tmp_path):
    subprocess.run([sys.executable, "-W", "ignore", "-c", NET], cwd=tmp_path, check=True)
    image = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-inference:2.6-cpu-py312"
    model = archive({"model.pt": (tmp_path / "model.pt").read_bytes()})
    name = create_model(cloud, model, image=image)
    endpoint = Endpoint(cloud, create_config(cloud, variant(name))).serve()
    [[zero], [one]] = json.loads(endpoint.invoke(b"[[0, 0], [1, 2]]")["Body"].read())
    assert zero == 0
    assert one != 0
    assert endpoint.invoke(b"1,2\n", CSV, Accept=NPY)["ContentType"] == NPY
    endpoint.delete()
