"""Which data and which images a training job can have, and what the job then sees."""

import json
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from harness import BUCKET, Cloud, command_line

LISTS = """
import os
for name in sorted(os.listdir("/opt/ml/input/data")):
    folder = os.path.join("/opt/ml/input/data", name)
    found = [os.path.relpath(os.path.join(parent, file), folder)
             for parent, _, files in os.walk(folder) for file in files]
    print(name, sorted(found))
"""


def channel(name, uri, data_type="S3Prefix", **fields):
    source = {"S3DataType": data_type, "S3Uri": uri}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, **fields}


def put_manifest(cloud, name, content):
    return cloud.put(f"manifests/{name}.json", json.dumps(content).encode())


def with_image(image):
    return {"TrainingImage": image, "TrainingInputMode": "File"}


def test_a_manifest_names_the_objects(cloud):
    for key in ("a.txt", "deep/b.txt", "not-listed.txt"):
        cloud.put(f"listed/{key}", b"1")
    head = {"prefix": f"s3://{BUCKET}/listed/"}
    uri = put_manifest(cloud, "good", [head, "a.txt", "deep/b.txt"])
    description = cloud.train(LISTS, InputDataConfig=[channel("some", uri, "ManifestFile")])
    assert description["TrainingJobStatus"] == "Completed", description["FailureReason"]
    assert "some ['a.txt', 'deep/b.txt']" in cloud.training_lines(description["TrainingJobName"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("no-list", {"prefix": "s3://b/"}, "is not a manifest"),
        ("no-prefix", ["a.txt"], "is not a manifest"),
        ("empty", [{"prefix": "s3://b/"}], "at least one key"),
        ("numbers", [{"prefix": "s3://b/"}, 3], "only strings"),
        ("gone", [{"prefix": f"s3://{BUCKET}/listed/"}, "gone.txt"], "listed/gone.txt"),
        ("escape", [{"prefix": f"s3://{BUCKET}/listed/"}, "../../../x"], "listed/../../../x"),
    ],
    ids=["no-list", "no-prefix", "empty", "numbers", "gone", "escape"],
)
def test_broken_manifests_fail_with_a_sentence(cloud, name, content, words):
    cloud.put("listed/a.txt", b"1")
    uri = put_manifest(cloud, name, content)
    description = cloud.train(LISTS, InputDataConfig=[channel("some", uri, "ManifestFile")])
    assert description["FailureReason"].startswith("ClientError: ")
    assert words in description["FailureReason"]


def test_a_manifest_that_is_not_there_fails_with_a_sentence(cloud):
    channels = [channel("some", f"s3://{BUCKET}/no-such-manifest", "ManifestFile")]
    assert "NoSuchKey" in cloud.train(LISTS, InputDataConfig=channels)["FailureReason"]


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        ([channel("a", "s3://b/k", InputMode="Pipe")], "File and FastFile, not Pipe"),
        ([channel("a", "s3://b/k", "AugmentedManifestFile")], "Pipe mode only"),
        ([channel("a", "s3://b/k", CompressionType="Gzip")], "CompressionType of channel 'a'"),
        ([channel("a", "s3://b/k", RecordWrapperType="RecordIO")], "RecordWrapperType"),
        ([channel("a", "https://b/k")], "begin with s3://"),
        ([channel("a", "s3://b/k"), channel("a", "s3://b/l")], "2 are called 'a'"),
    ],
    ids=["pipe", "augmented", "gzip", "recordio", "https", "twice"],
)
def test_channels_that_cannot_be_read_are_refused_at_creation(cloud, channels, words):
    with pytest.raises(ClientError, match=words) as refused:
        cloud.start_training(LISTS, InputDataConfig=channels)
    assert refused.value.response["Error"]["Code"] == "ValidationException"


def test_the_mode_of_the_algorithm_holds_for_channels_without_their_own(cloud):
    algorithm = {"TrainingImage": "any/image:1", "TrainingInputMode": "Pipe"}
    with pytest.raises(ClientError, match="not Pipe"):
        cloud.start_training(
            LISTS, AlgorithmSpecification=algorithm, InputDataConfig=[channel("a", "s3://b/k")]
        )


ECR = "382416733822.dkr.ecr.us-east-1.amazonaws.com"


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        (with_image(f"{ECR}/linear-learner:1"), "built-in algorithm"),
        (with_image(f"{ECR}/image-classification@sha256:ab"), "built-in algorithm"),
        (with_image(f"{ECR}/kmeans"), "built-in algorithm"),
        ({"AlgorithmName": "arn-of-one", "TrainingInputMode": "File"}, "algorithm resources"),
    ],
    ids=["linear-learner", "image-classification", "kmeans", "resource"],
)
def test_algorithms_inside_images_are_never_run_as_something_else(cloud, algorithm, words):
    with pytest.raises(ClientError, match=words) as refused:
        cloud.start_training(LISTS, AlgorithmSpecification=algorithm)
    assert refused.value.response["Error"]["Code"] == "ValidationException"


def test_an_image_without_code_is_refused_and_says_what_is_missing(cloud):
    image = f"{ECR}/sagemaker-xgboost:1.7-1"  # Runs scripts, too; this job has none.
    with pytest.raises(ClientError, match="neither a ContainerEntrypoint nor the hyperparameter"):
        cloud.start_training(
            LISTS, HyperParameters={"max_depth": "3"}, AlgorithmSpecification=with_image(image)
        )


def test_the_description_says_what_runs_in_place_of_the_image(cloud):
    image = f"{ECR}/sagemaker-xgboost:1.7-1"
    description = cloud.train("print(1)", AlgorithmSpecification=with_image(image))
    assert description["TrainingJobStatus"] == "Completed"
    message = description["SecondaryStatusTransitions"][0]["StatusMessage"]
    assert message.endswith(f"in place of the image {image}")
    assert "this machine's Python 3." in message


def test_the_user_can_say_what_runs_for_an_image(own_home, tmp_path, monkeypatch):
    images = tmp_path / "images.json"
    images.write_text(json.dumps({"mine/forecaster": ["python3", str(tmp_path / "train.py")]}))
    (tmp_path / "train.py").write_text("print('forecasting')")
    monkeypatch.setenv("LOCAL_CLOUD_IMAGES", str(images))
    assert command_line(own_home, "start").returncode == 0
    cloud = Cloud(own_home)
    cloud.s3.create_bucket(Bucket=BUCKET)
    fields = {
        "HyperParameters": {},
        "AlgorithmSpecification": with_image("mine/forecaster:2"),
    }
    description = cloud.train("", **fields)
    assert description["TrainingJobStatus"] == "Completed", description["FailureReason"]
    assert cloud.training_lines(description["TrainingJobName"]) == ["forecasting"]
    images.write_text("[broken")
    with pytest.raises(ClientError, match="cannot be read as a JSON object"):
        cloud.start_training("", **fields)


CONFIGURED = """
import json, os
for name in ("debughookconfig", "profilerconfig", "tensorboardoutputconfig", "checkpointconfig"):
    config = json.load(open(f"/opt/ml/input/config/{name}.json"))
    os.makedirs(config["LocalPath"], exist_ok=True)
    open(os.path.join(config["LocalPath"], name + ".txt"), "w").write(name)
    print(name, sorted(config), config["LocalPath"])
hyperparameters = json.load(open("/opt/ml/input/config/hyperparameters.json"))
print("rate", repr(hyperparameters["rate"]), os.path.exists(os.environ["SMDEBUG_CONFIG_FILE_PATH"]))
"""


def test_configured_folders_go_to_s3_and_are_described_to_the_job(cloud):
    out = f"s3://{BUCKET}/synced"
    description = cloud.train(
        CONFIGURED,
        hyperparameters={"rate": "0.5"},
        DebugHookConfig={"S3OutputPath": out, "CollectionConfigurations": []},
        ProfilerConfig={"S3OutputPath": out, "ProfilingIntervalInMilliseconds": 500},
        TensorBoardOutputConfig={"S3OutputPath": out, "LocalPath": "/logs"},
        CheckpointConfig={"S3Uri": f"{out}/checkpoints"},
    )
    name = description["TrainingJobName"]
    assert description["TrainingJobStatus"] == "Completed", description["FailureReason"]
    lines = cloud.training_lines(name)
    collections = "['CollectionConfigurations', 'LocalPath', 'S3OutputPath']"
    assert f"debughookconfig {collections} /opt/ml/output/tensors" in lines
    assert "tensorboardoutputconfig ['LocalPath', 'S3OutputPath'] /logs" in lines
    assert "rate '0.5' True" in lines
    for key in (
        f"{name}/debug-output/debughookconfig.txt",
        f"{name}/profiler-output/profilerconfig.txt",
        f"{name}/tensorboard-output/tensorboardoutputconfig.txt",
        "checkpoints/checkpointconfig.txt",
    ):
        assert cloud.get(f"synced/{key}")


def test_a_folder_that_cannot_be_written_is_one_sentence(cloud):
    request = cloud.training_request("print(1)")
    name = request["TrainingJobName"]
    folder = Path(cloud.server["work_folder"]) / "jobs" / "TrainingJob"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("a file where the job's folder must be")
    cloud.sagemaker.create_training_job(**request)
    description = cloud.wait_for_training(name)
    (folder / name).unlink()
    assert description["FailureReason"] == (
        "ClientError: the files of the job cannot be kept on this machine: Not a directory: "
        f"/jobs/TrainingJob/{name}/algo-1/opt/ml"
    )


def test_a_compressed_and_a_plain_model(cloud):
    script = "import os\nopen('/opt/ml/model/m.txt', 'w').write('m')\nos.mkdir('/opt/ml/model/d')"
    output = {"S3OutputPath": f"s3://{BUCKET}/plain/", "CompressionType": "NONE"}
    description = cloud.train(script, OutputDataConfig=output)
    uri = description["ModelArtifacts"]["S3ModelArtifacts"]
    assert uri == f"s3://{BUCKET}/plain/{description['TrainingJobName']}/output/model/"
    assert cloud.get(uri.removeprefix(f"s3://{BUCKET}/") + "m.txt") == b"m"
