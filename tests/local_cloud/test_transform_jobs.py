"""Batch transform jobs: inputs, splitting, batching, joining, failures, stopping."""

import gzip
import json

import pytest
from botocore.exceptions import ClientError
from endpoints import create_model, unique
from harness import BUCKET, FINAL, archive, until

ECHO = """
import json, os, time

def model_fn(model_dir):
    return None

def transform_fn(model, body, content_type, accept):
    text = body if isinstance(body, str) else body.decode("latin-1")
    if "bad" in text:
        raise ValueError("a bad record")
    if "slow" in text:
        print("a slow record")
        time.sleep(60)
    if content_type == "text/csv":
        rows = [[float(cell) for cell in line.split(",")] for line in text.splitlines()]
        return "\\n".join(str(sum(row)) for row in rows)
    if content_type == "application/jsonlines":
        return "\\n".join(json.dumps({"sum": sum(json.loads(r)["x"])}) for r in text.splitlines())
    return json.dumps({"bytes": len(body), "batch": os.environ["SAGEMAKER_BATCH"]})
"""
CSV = b"1,2,3\n4,5,6\n7,8,9\n"
LINES = b'{"id":1,"x":[1,2]}\n{"id":2,"x":[3,4]}\n{"id":3,"x":[5]}\n'


@pytest.fixture(scope="module")
def model(cloud):
    return create_model(cloud, archive({"code/inference.py": ECHO}))


def put_all(cloud, files):
    """Store files below a prefix of their own and return its address."""
    prefix = f"batch/{unique('in')}/"
    for key, body in files.items():
        cloud.put(prefix + key, body)
    return f"s3://{BUCKET}/{prefix}"


def request(model, uri, kind="S3Prefix", source=None, output=None, **fields):
    name = unique("transform")
    data = {"DataSource": {"S3DataSource": {"S3DataType": kind, "S3Uri": uri}}}
    return {
        "TransformJobName": name,
        "ModelName": model,
        "TransformInput": {**data, **(source or {})},
        "TransformOutput": {"S3OutputPath": f"s3://{BUCKET}/batch/{name}", **(output or {})},
        "TransformResources": {"InstanceType": "ml.m5.large", "InstanceCount": 1},
        **fields,
    }


def wait(cloud, name):
    def ended():
        description = cloud.sagemaker.describe_transform_job(TransformJobName=name)
        return description if description["TransformJobStatus"] in FINAL else None

    return until(ended)


def outputs(cloud, name):
    """The objects that a job wrote, by key below its output path."""
    prefix = f"batch/{name}/"
    found = cloud.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return {entry["Key"].removeprefix(prefix): cloud.get(entry["Key"]) for entry in found}


def transform(cloud, model, uri, **arguments):
    """Run a job to its end; its description and its outputs."""
    sent = request(model, uri, **arguments)
    cloud.sagemaker.create_transform_job(**sent)
    name = sent["TransformJobName"]
    return wait(cloud, name), outputs(cloud, name)


def test_every_object_of_a_prefix_gets_an_answer_of_its_own(cloud, model):
    uri = put_all(cloud, {"a.png": b"\x00" * 10, "deep/er/b.png": b"\x01" * 20})
    description, found = transform(cloud, model, uri, source={"ContentType": "image/png"})
    assert description["TransformJobStatus"] == "Completed", description.get("FailureReason")
    assert {key: json.loads(body) for key, body in found.items()} == {
        "a.png.out": {"bytes": 10, "batch": "true"},
        "deep/er/b.png.out": {"bytes": 20, "batch": "true"},
    }
    assert description["TransformStartTime"] <= description["TransformEndTime"]


def test_a_manifest_names_the_objects(cloud, model):
    prefix = put_all(cloud, {"a.bin": b"1", "b.bin": b"22", "c.bin": b"333"})
    manifest = json.dumps([{"prefix": prefix}, "a.bin", "c.bin"]).encode()
    uri = cloud.put(f"batch/{unique('m')}.manifest", manifest)
    _, found = transform(cloud, model, uri, kind="ManifestFile")
    assert {key: json.loads(body)["bytes"] for key, body in found.items()} == {
        "a.bin.out": 1,
        "c.bin.out": 3,
    }


@pytest.mark.parametrize("strategy", ["SingleRecord", "MultiRecord"])
def test_lines_are_batched_and_assembled(cloud, model, strategy):
    uri = put_all(cloud, {"rows.csv": CSV})
    _, found = transform(
        cloud,
        model,
        uri + "rows.csv",
        source={"ContentType": "text/csv", "SplitType": "Line"},
        output={"AssembleWith": "Line"},
        BatchStrategy=strategy,
        MaxConcurrentTransforms=3,
    )
    assert found == {"rows.csv.out": b"6.0\n15.0\n24.0\n"}


def test_payloads_stay_below_the_limit(cloud, model):
    line = b"x" * 700_000
    uri = put_all(cloud, {"long.txt": b"\n".join([line] * 4)})
    _, found = transform(
        cloud,
        model,
        uri,
        source={"SplitType": "Line", "ContentType": "text/plain"},
        output={"AssembleWith": "Line"},
        MaxPayloadInMB=2,
    )
    sizes = [json.loads(part)["bytes"] for part in found["long.txt.out"].splitlines()]
    assert sizes == [1_400_001, 1_400_001]


def test_compressed_input(cloud, model):
    uri = put_all(cloud, {"rows.csv.gz": gzip.compress(CSV)})
    source = {"ContentType": "text/csv", "SplitType": "Line", "CompressionType": "Gzip"}
    _, found = transform(cloud, model, uri, source=source)
    assert found == {"rows.csv.gz.out": b"6.0\n15.0\n24.0"}


@pytest.mark.parametrize(
    ("kind", "data", "processing", "expected"),
    [
        ("text/csv", CSV, {"InputFilter": "$[1:]"}, b"5.0\n11.0\n17.0\n"),
        ("text/csv", CSV, {"JoinSource": "Input"}, b"1,2,3,6.0\n4,5,6,15.0\n7,8,9,24.0\n"),
        (
            "text/csv",
            CSV,
            {"InputFilter": "$[1:]", "JoinSource": "Input", "OutputFilter": "$[0,-1]"},
            b"1,5.0\n4,11.0\n7,17.0\n",
        ),
        (
            "application/jsonlines",
            LINES,
            {"JoinSource": "Input", "OutputFilter": "$['id','SageMakerOutput']"},
            b'{"id":1,"SageMakerOutput":{"sum":3}}\n{"id":2,"SageMakerOutput":{"sum":7}}\n'
            b'{"id":3,"SageMakerOutput":{"sum":5}}\n',
        ),
        ("application/jsonlines", LINES, {"OutputFilter": "$.sum"}, b"3\n7\n5\n"),
    ],
    ids=["input filter", "join csv", "all three", "join json", "output filter"],
)
def test_data_processing(cloud, model, kind, data, processing, expected):
    uri = put_all(cloud, {"data": data})
    description, found = transform(
        cloud,
        model,
        uri,
        source={"ContentType": kind, "SplitType": "Line"},
        output={"AssembleWith": "Line"},
        DataProcessing=processing,
    )
    assert found == {"data.out": expected}, description.get("FailureReason")


def test_a_failing_record_fails_the_job_with_the_reason(cloud, model):
    uri = put_all(cloud, {"a.txt": b"good", "b.txt": b"bad", "c.txt": b"good"})
    client = {"InvocationsMaxRetries": 1}
    description, found = transform(cloud, model, uri, ModelClientConfig=client)
    assert description["TransformJobStatus"] == "Failed"
    assert "AlgorithmError" in description["FailureReason"]
    assert (
        "b.txt: Bad HTTP status received from algorithm: 500: a bad record"
        in (description["FailureReason"])
    )
    assert set(found) <= {"a.txt.out"}
    lines = cloud.lines("/aws/sagemaker/TransformJobs", f"{description['TransformJobName']}/data-")
    assert len([line for line in lines if "a bad record" in line]) == 2


@pytest.mark.parametrize(
    ("files", "words"),
    [({}, "No S3 objects found"), ({"a.txt": b"x" * 1_500_000}, "larger than MaxPayloadInMB")],
    ids=["no input", "too large"],
)
def test_input_that_cannot_be_sent_fails_the_job(cloud, model, files, words):
    description, _ = transform(cloud, model, put_all(cloud, files), MaxPayloadInMB=1)
    assert description["TransformJobStatus"] == "Failed"
    assert words in description["FailureReason"]


def test_a_model_that_does_not_load_fails_the_job(cloud):
    broken = create_model(cloud, archive({"code/inference.py": "raise OSError('no weights')"}))
    description, _ = transform(cloud, broken, put_all(cloud, {"a.txt": b"1"}))
    assert description["TransformJobStatus"] == "Failed"
    assert "no weights" in description["FailureReason"]


def test_stopping(cloud, model):
    uri = put_all(cloud, {"a.txt": b"good", "b.txt": b"slow"})
    sent = request(model, uri, MaxConcurrentTransforms=1)
    name = sent["TransformJobName"]
    cloud.sagemaker.create_transform_job(**sent)
    until(lambda: "a slow record" in cloud.lines("/aws/sagemaker/TransformJobs", name))
    cloud.sagemaker.stop_transform_job(TransformJobName=name)
    description = wait(cloud, name)
    assert description["TransformJobStatus"] == "Stopped"
    assert "FailureReason" not in description
    with pytest.raises(ClientError, match="status Stopped"):
        cloud.sagemaker.stop_transform_job(TransformJobName=name)
    listed = cloud.sagemaker.list_transform_jobs(NameContains=name, StatusEquals="Stopped")
    assert [job["TransformJobName"] for job in listed["TransformJobSummaries"]] == [name]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "AugmentedManifestFile"}, "not AugmentedManifestFile"),
        ({"source": {"SplitType": "RecordIO"}}, "not by RecordIO"),
        ({"MaxPayloadInMB": 60, "MaxConcurrentTransforms": 2}, "100 MB"),
        (
            {"TransformResources": {"InstanceType": "ml.m5.large", "InstanceCount": 9}},
            "limit of local_cloud is 4",
        ),
        ({"DataProcessing": {"InputFilter": "$[1:]"}}, "JSON or CSV"),
        (
            {"source": {"ContentType": "text/csv"}, "DataProcessing": {"InputFilter": "$..x"}},
            "not understood",
        ),
        ({"ModelName": "unknown"}, "Could not find"),
    ],
    ids=["manifest", "split", "payload", "instances", "filter of what", "filter", "model"],
)
def test_what_cannot_be_done_is_refused_at_creation(cloud, model, changes, words):
    sent = request(model, f"s3://{BUCKET}/any/", **changes)
    with pytest.raises(ClientError, match=words):
        cloud.sagemaker.create_transform_job(**sent)


def test_transformer_of_the_sdk(cloud, sdk, model):
    from sagemaker.core.transformer import Transformer

    uri = put_all(cloud, {"rows.csv": CSV})
    transformer = Transformer(
        model_name=model,
        instance_count=2,
        instance_type="ml.m5.large",
        strategy="SingleRecord",
        assemble_with="Line",
        output_path=f"s3://{BUCKET}/batch/{unique('sdk')}",
        sagemaker_session=sdk,
    )
    transformer.transform(uri, content_type="text/csv", split_type="Line", wait=False)
    job = transformer.latest_transform_job
    description = wait(cloud, job.transform_job_name)
    assert description["TransformJobStatus"] == "Completed", description.get("FailureReason")
    job.refresh()
    key = transformer.output_path.removeprefix(f"s3://{BUCKET}/") + "/rows.csv.out"
    assert cloud.get(key) == b"6.0\n15.0\n24.0\n"


# Crashes once; a server that starts after that takes as long as the environment says.
CRASHES_ONCE = """
import os, time

FLAG = os.environ["FLAG"]

def model_fn(model_dir):
    if os.path.exists(FLAG):
        time.sleep(float(os.environ["SECONDS"]))

def transform_fn(model, body, content_type, accept):
    if not os.path.exists(FLAG):
        open(FLAG, "w").close()
        os._exit(3)
    return "answered"
"""


@pytest.mark.parametrize(("count", "seconds"), [(1, "2"), (2, "60")])
def test_a_request_whose_server_crashed_goes_to_one_that_is_ready(cloud, tmp_path, count, seconds):
    environment = {"FLAG": str(tmp_path / "flag"), "SECONDS": seconds}
    model = create_model(
        cloud, archive({"code/inference.py": CRASHES_ONCE}), environment=environment
    )
    description, found = transform(
        cloud,
        model,
        put_all(cloud, {"a.txt": b"1"}),
        TransformResources={"InstanceType": "ml.m5.large", "InstanceCount": count},
        ModelClientConfig={"InvocationsMaxRetries": 1},
    )
    assert found == {"a.txt.out": b"answered"}, description.get("FailureReason")
