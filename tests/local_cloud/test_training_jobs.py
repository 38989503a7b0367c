"""Training jobs: both code contracts, statuses, logs, metrics, artifacts, failures, stopping."""

import itertools
import json
import os
import signal

import psutil
import pytest
from botocore.exceptions import ClientError
from harness import BUCKET, ROLE, archive, is_alive, until

WRITES = """
import json, os, sys, argparse
parser = argparse.ArgumentParser()
parser.add_argument("--rate", type=float)
parser.add_argument("--name")
args = parser.parse_args()
words = os.environ["SM_CHANNEL_WORDS"]
seen = {name: open(os.path.join(words, name)).read() for name in sorted(os.listdir(words))}
print("words:", seen)
print("loss=0.5 rate=%s" % args.rate)
print("loss=0.25")
with open(os.path.join(os.environ["SM_MODEL_DIR"], "model.txt"), "w") as file:
    file.write(args.name)
with open(os.path.join(os.environ["SM_OUTPUT_DATA_DIR"], "seen.json"), "w") as file:
    json.dump(seen, file)
"""


def channel(name, uri):
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}


def with_metrics(*metrics):
    return {
        "TrainingImage": "any/image:1",
        "TrainingInputMode": "File",
        "MetricDefinitions": [{"Name": name, "Regex": regex} for name, regex in metrics],
    }


@pytest.fixture(scope="module")
def completed(cloud):
    """The description of one job that used everything."""
    cloud.put("words/a.txt", b"one")
    cloud.put("words/", b"")  # What the S3 console makes for a folder is not a file.
    return cloud.train(
        WRITES,
        hyperparameters={"rate": "0.001", "name": '"Ann"'},
        InputDataConfig=[channel("words", f"s3://{BUCKET}/words/")],
        AlgorithmSpecification=with_metrics(("loss", r"loss=(\S+)"), ("rate", r"rate=(\S+)")),
    )


def test_toolkit_contract_passes_channels_and_hyperparameters(cloud, completed):
    assert completed["TrainingJobStatus"] == "Completed", completed.get("FailureReason")
    assert "words: {'a.txt': 'one'}" in cloud.training_lines(completed["TrainingJobName"])


def test_artifacts_hold_what_the_script_wrote(cloud, completed):
    name = completed["TrainingJobName"]
    uri = completed["ModelArtifacts"]["S3ModelArtifacts"]
    assert uri == f"s3://{BUCKET}/out/{name}/output/model.tar.gz"
    assert cloud.archive_members(f"out/{name}/output/model.tar.gz") == {"model.txt": "Ann"}
    output = cloud.archive_members(f"out/{name}/output/output.tar.gz")
    assert json.loads(output["seen.json"]) == {"a.txt": "one"}


def test_secondary_statuses_come_in_the_order_of_the_service(completed):
    transitions = completed["SecondaryStatusTransitions"]
    order = ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert [transition["Status"] for transition in transitions] == order
    for earlier, later in itertools.pairwise(transitions):
        assert earlier["StartTime"] <= earlier["EndTime"] <= later["StartTime"]
    assert completed["SecondaryStatus"] == "Completed"
    assert completed["CreationTime"] <= completed["TrainingStartTime"]
    assert completed["TrainingStartTime"] <= completed["TrainingEndTime"]
    assert completed["BillableTimeInSeconds"] >= 1


def test_the_last_value_of_every_metric_is_kept(completed):
    metrics = {m["MetricName"]: m["Value"] for m in completed["FinalMetricDataList"]}
    assert metrics == {"loss": 0.25, "rate": pytest.approx(0.001)}


def test_a_line_without_a_number_harms_neither_the_metrics_nor_the_job(cloud):
    """A regex with two ways, of which a line takes the second; and a loss that is none."""
    script = "import sys\nfor line in ('accuracy: 0.5', 'acc=0.25', 'loss=nan', 'end'):\n"
    script += "    print(line, flush=True)"
    ways = with_metrics(("acc", r"acc=([\d.]+)|accuracy: ([\d.]+)"), ("loss", r"loss=(\S+)"))
    description = cloud.train(script, AlgorithmSpecification=ways)
    assert description["TrainingJobStatus"] == "Completed"
    metrics = {m["MetricName"]: m["Value"] for m in description["FinalMetricDataList"]}
    assert metrics == {"acc": 0.25}
    assert cloud.training_lines(description["TrainingJobName"])[-1] == "end"


def test_a_job_without_a_time_limit_has_the_services(cloud):
    request = cloud.training_request("print('done')")
    del request["StoppingCondition"]
    cloud.sagemaker.create_training_job(**request)
    description = cloud.wait_for_training(request["TrainingJobName"])
    assert description["StoppingCondition"] == {"MaxRuntimeInSeconds": 24 * 3600}


def test_arguments_are_those_of_the_toolkit(cloud):
    description = cloud.train(
        "import sys; print(sys.argv[1:])",
        hyperparameters={"flag": "true", "b": "2", "text": "two words", "list": "[1, 2]"},
    )
    expected = ["-b", "2", "--flag", "True", "--list", "[1, 2]", "--text", "two words"]
    assert str(expected) in cloud.training_lines(description["TrainingJobName"])


def test_log_lines_arrive_while_the_job_runs(cloud):
    name = cloud.start_training(
        "import time\nprint('early', flush=True)\ntime.sleep(60)", hyperparameters={}
    )
    until(lambda: "early" in cloud.training_lines(name))
    description = cloud.sagemaker.describe_training_job(TrainingJobName=name)
    assert description["TrainingJobStatus"] == "InProgress"
    assert description["SecondaryStatus"] == "Training"
    assert "TrainingEndTime" not in description
    assert "FinalMetricDataList" not in description
    cloud.sagemaker.stop_training_job(TrainingJobName=name)
    assert cloud.wait_for_training(name)["TrainingJobStatus"] == "Stopped"


def test_stopping_keeps_what_the_script_saves_on_sigterm(cloud):
    name = cloud.start_training(
        """
import os, signal, sys, time
def save(*_):
    time.sleep(2)
    open(os.path.join(os.environ["SM_MODEL_DIR"], "half.txt"), "a").write("half;")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)
"""
    )
    until(lambda: "ready" in cloud.training_lines(name))
    for _ in range(2):
        cloud.sagemaker.stop_training_job(TrainingJobName=name)
    description = cloud.wait_for_training(name)
    assert description["TrainingJobStatus"] == "Stopped"
    assert "FailureReason" not in description
    statuses = [t["Status"] for t in description["SecondaryStatusTransitions"]]
    assert statuses[-4:] == ["Training", "Stopping", "Uploading", "Stopped"]
    # Once: a second signal would have interrupted the saving.
    assert cloud.archive_members(f"out/{name}/output/model.tar.gz") == {"half.txt": "half;"}
    with pytest.raises(ClientError, match="status Stopped"):
        cloud.sagemaker.stop_training_job(TrainingJobName=name)


def test_the_time_limit_stops_the_job(cloud):
    description = cloud.train(
        "import time; time.sleep(60)", StoppingCondition={"MaxRuntimeInSeconds": 1}
    )
    assert description["TrainingJobStatus"] == "Stopped"
    assert description["SecondaryStatus"] == "MaxRuntimeExceeded"


def test_failure_reason_is_the_failure_file(cloud):
    description = cloud.train(
        """
import os, sys
path = os.path.join(os.environ["SM_OUTPUT_DIR"], "failure")
open(path, "w").write(f"cannot read {os.environ['SM_MODEL_DIR']}")
print("other words")
sys.exit(7)
"""
    )
    assert description["TrainingJobStatus"] == description["SecondaryStatus"] == "Failed"
    reason = "AlgorithmError: cannot read /opt/ml/model, exit code: 7"
    assert description["FailureReason"] == reason
    # The address that is configured for the model, whether or not it came to be.
    assert description["ModelArtifacts"]["S3ModelArtifacts"].endswith("/output/model.tar.gz")
    key = f"out/{description['TrainingJobName']}/output/model.tar.gz"
    assert "Contents" not in cloud.s3.list_objects_v2(Bucket=BUCKET, Prefix=key)


def test_failure_reason_is_the_end_of_the_output_where_there_is_no_file(cloud):
    description = cloud.train("print('x' * 5000)\nraise ValueError('the rate is negative')")
    reason = description["FailureReason"]
    assert reason.endswith("ValueError: the rate is negative, exit code: 1")
    assert len(reason) <= 1024


def test_who_starts_the_cloud_says_how_many_threads_a_job_takes(cloud):
    # conftest.py says 1.
    name = cloud.start_training("import os\nprint('threads', os.environ['OMP_NUM_THREADS'])")
    assert cloud.wait_for_training(name)["TrainingJobStatus"] == "Completed"
    assert "threads 1" in cloud.training_lines(name)


def test_a_killed_job_fails_with_a_sentence(cloud):
    name = cloud.start_training(
        "import os, time\nprint('pid', os.getpid(), flush=True)\ntime.sleep(60)"
    )
    (line,) = until(lambda: [x for x in cloud.training_lines(name) if x.startswith("pid")])
    os.kill(int(line.split()[1]), signal.SIGKILL)
    description = cloud.wait_for_training(name)
    assert description["TrainingJobStatus"] == "Failed"
    assert description["FailureReason"] == f"AlgorithmError: {line}, ended by SIGKILL"


def test_processes_that_a_job_leaves_behind_end_with_it(cloud):
    description = cloud.train(
        """
import subprocess
for new_session in (False, True):
    child = subprocess.Popen(["sleep", "600"], start_new_session=new_session)
    print("pid", child.pid, flush=True)
"""
    )
    assert description["TrainingJobStatus"] == "Completed"
    pids = [
        int(line.split()[1])
        for line in cloud.training_lines(description["TrainingJobName"])
        if line.startswith("pid")
    ]
    assert len(pids) == 2
    until(lambda: not any(is_alive(pid) for pid in pids), timeout=5)


def test_missing_data_fails_with_the_words_of_the_service(cloud):
    description = cloud.train(
        "print('never')", InputDataConfig=[channel("words", f"s3://{BUCKET}/nothing/")]
    )
    assert description["FailureReason"] == (
        "ClientError: Data download failed: No S3 objects found under S3 URL "
        f"'s3://{BUCKET}/nothing/'."
    )
    assert cloud.training_lines(description["TrainingJobName"]) == []


def test_a_missing_output_bucket_fails_with_a_sentence(cloud):
    description = cloud.train(
        "import os; open(os.environ['SM_MODEL_DIR'] + '/m', 'w').write('m')",
        OutputDataConfig={"S3OutputPath": "s3://no-such-bucket/out"},
    )
    assert description["FailureReason"].startswith("ClientError: Data upload failed: ")
    assert "NoSuchBucket" in description["FailureReason"]


@pytest.mark.parametrize("source", ["broken", "unsafe", "absent"])
def test_bad_source_archives_fail_with_a_sentence(cloud, source):
    body = {"broken": b"no gzip", "unsafe": archive({"../evil.py": "1"}), "absent": archive({})}
    uri = cloud.put(f"bad/{source}.tar.gz", body[source])
    description = cloud.train(
        "print('never')",
        hyperparameters={"sagemaker_submit_directory": uri},
    )
    words = {"broken": "cannot be unpacked", "unsafe": "evil.py", "absent": "'main.py' is not in"}
    assert words[source] in description["FailureReason"]
    assert "InternalServerError" not in description["FailureReason"]


def test_secrets_are_in_no_log_and_no_argument(cloud, completed):
    name = cloud.start_training("import time\nprint('ready', flush=True)\ntime.sleep(60)")
    until(lambda: "ready" in cloud.training_lines(name))
    secret = cloud.env["AWS_SECRET_ACCESS_KEY"]
    commands = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    assert not any(secret in command for command in commands)
    assert secret not in (cloud.home / "server.log").read_text()
    assert secret not in "\n".join(cloud.training_lines(completed["TrainingJobName"]))
    cloud.sagemaker.stop_training_job(TrainingJobName=name)
    cloud.wait_for_training(name)


DRIVEN = """
import argparse, os, time
parser = argparse.ArgumentParser()
parser.add_argument("--n", type=int)
n = parser.parse_args().n
print("items", sorted(os.listdir(os.environ["SM_CHANNEL_WORDS"])), flush=True)
print("score=%s" % n, flush=True)
open(os.path.join(os.environ["SM_MODEL_DIR"], "n.txt"), "w").write(str(n))
if n == 13:
    raise SystemExit("thirteen is not allowed")
"""


@pytest.fixture(scope="module")
def trainer(cloud, sdk, tmp_path_factory):
    """A `ModelTrainer` of the unmodified SDK; it talks to the cloud."""
    from sagemaker.core.training.configs import Compute, SourceCode
    from sagemaker.train import ModelTrainer

    cloud.put("driven-data/a.txt", b"one")
    source = tmp_path_factory.mktemp("source")
    (source / "driven.py").write_text(DRIVEN)
    (source / "latin.sh").write_bytes(b"# caf\xe9\n")
    return ModelTrainer(
        training_image="any/image:1",
        role=ROLE,
        sagemaker_session=sdk,
        source_code=SourceCode(source_dir=str(source), entry_script="driven.py"),
        compute=Compute(instance_type="ml.m5.large", instance_count=1),
        hyperparameters={"n": 3},
        base_job_name="driven",
    )


def driven(cloud, trainer, n):
    from sagemaker.core.training.configs import InputData

    trainer.hyperparameters = {"n": n}
    # The SDK appends the second to the name: two trainings in one second would collide.
    trainer.base_job_name = f"driven-{n}"
    data = InputData(channel_name="words", data_source=f"s3://{BUCKET}/driven-data/")
    trainer.train(input_data_config=[data], wait=False)
    return cloud.wait_for_training(trainer._latest_training_job.training_job_name)


def test_model_trainer_of_the_sdk(cloud, trainer):
    description = driven(cloud, trainer, 3)
    assert description["TrainingJobStatus"] == "Completed", description["FailureReason"]
    assert "items ['a.txt']" in cloud.training_lines(description["TrainingJobName"])
    key = description["ModelArtifacts"]["S3ModelArtifacts"].removeprefix(f"s3://{BUCKET}/")
    assert cloud.archive_members(key) == {"n.txt": "3"}
    trainer._latest_training_job.refresh()  # Its models accept the whole answer.
    assert trainer._latest_training_job.training_job_status == "Completed"


def test_failure_of_a_script_under_the_drivers_says_why(cloud, trainer):
    description = driven(cloud, trainer, 13)
    reason = "AlgorithmError: items ['a.txt']\nscore=13\nthirteen is not allowed, exit code: 1"
    assert description["FailureReason"] == reason
