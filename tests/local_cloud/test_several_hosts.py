"""Jobs on several hosts: their configuration, their shards, their end, and torchrun on top."""

import json
import os

import pytest
from botocore.exceptions import ClientError
from harness import BUCKET, ROLE, is_alive, until

TELLS = """
import json, os
config = json.load(open("/opt/ml/input/config/resourceconfig.json"))
host, hosts = os.environ["SM_CURRENT_HOST"], json.loads(os.environ["SM_HOSTS"])
assert config["current_host"] == host and config["hosts"] == hosts
assert config["network_interface_name"] == os.environ["SM_NETWORK_INTERFACE_NAME"]
number = hosts.index(host) + 1
shard = sorted(os.listdir("/opt/ml/input/data/shard"))
whole = sorted(os.listdir("/opt/ml/input/data/whole"))
print("host", number, host, hosts, shard, whole, os.environ["OMP_NUM_THREADS"])
print("metric=%d" % number)
for folder, name in (("model", f"only-{number}"), ("model", "same"), ("output/data", f"o{number}")):
    with open(f"/opt/ml/{folder}/{name}", "w") as file:
        file.write(host)
"""


def instances(count):
    return {"InstanceType": "ml.m5.large", "InstanceCount": count, "VolumeSizeInGB": 1}


def channel(name, uri, distribution):
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": distribution}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}


@pytest.fixture(scope="module")
def three_hosts(cloud):
    for letter in "abcd":
        cloud.put(f"shards/{letter}", b"1")
    uri = f"s3://{BUCKET}/shards/"
    return cloud.train(
        TELLS,
        ResourceConfig=instances(3),
        InputDataConfig=[
            channel("shard", uri, "ShardedByS3Key"),
            channel("whole", uri, "FullyReplicated"),
        ],
    )


def test_every_host_knows_its_place_and_gets_its_shard(cloud, three_hosts):
    assert three_hosts["TrainingJobStatus"] == "Completed", three_hosts["FailureReason"]
    name = three_hosts["TrainingJobName"]
    hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    shards = [["a", "d"], ["b"], ["c"]]
    for number, (host, shard) in enumerate(zip(hosts, shards), 1):
        (line, _) = cloud.lines("/aws/sagemaker/TrainingJobs", f"{name}/algo-{number}-")
        assert line.startswith(f"host {number} {host} {hosts} {shard} ['a', 'b', 'c', 'd'] ")


def test_what_the_hosts_wrote_is_one_artifact(cloud, three_hosts):
    name = three_hosts["TrainingJobName"]
    assert cloud.archive_members(f"out/{name}/output/model.tar.gz") == {
        "only-1": "127.0.0.1",
        "only-2": "127.0.0.2",
        "only-3": "127.0.0.3",
        "same": "127.0.0.1",
    }
    assert set(cloud.archive_members(f"out/{name}/output/output.tar.gz")) == {"o1", "o2", "o3"}


def test_billable_time_is_not_multiplied_by_the_hosts(three_hosts):
    # The caller does that: API reference, DescribeTrainingJob, BillableTimeInSeconds.
    assert three_hosts["BillableTimeInSeconds"] == three_hosts["TrainingTimeInSeconds"] <= 5


def test_one_failing_host_ends_the_job(cloud):
    description = cloud.train(
        """
import os, sys, time
print("pid", os.getpid(), flush=True)
if os.environ["SM_CURRENT_HOST"] == "127.0.0.2":
    time.sleep(0.3)
    sys.exit("the second host has no data")
time.sleep(60)
""",
        ResourceConfig=instances(2),
    )
    assert description["TrainingJobStatus"] == "Failed"
    assert description["FailureReason"].endswith("the second host has no data, exit code: 1")
    pids = [
        line.split()[1]
        for line in cloud.training_lines(description["TrainingJobName"])
        if line.startswith("pid")
    ]
    assert len(pids) == 2
    assert not any(is_alive(int(pid)) for pid in pids)


def test_too_many_hosts_are_refused(cloud):
    with pytest.raises(
        ClientError, match=r"'ml\.m5\.large for training job usage' is 8"
    ) as refused:
        cloud.start_training("print(1)", ResourceConfig=instances(9))
    assert refused.value.response["Error"]["Code"] == "ResourceLimitExceeded"


ALL_REDUCE = """
import argparse, json, os
import torch, torch.distributed as dist
parser = argparse.ArgumentParser()
parser.add_argument("--factor", type=int)
factor = parser.parse_args().factor
dist.init_process_group("gloo")
rank = dist.get_rank()
total = torch.tensor([float(factor * (rank + 1))])
dist.all_reduce(total)
host = os.environ["SM_CURRENT_HOST"]
# In one piece: the processes of a host share its output.
line = f"rank {rank} of {dist.get_world_size()} on {host} sum {total.item()}\\n"
os.write(1, line.encode())
dist.barrier()
dist.destroy_process_group()
if rank == 0:
    with open("/opt/ml/model/sum.json", "w") as file:
        json.dump({"sum": total.item(), "threads": os.environ["OMP_NUM_THREADS"]}, file)
"""


def test_torchrun_of_the_sdk_over_two_hosts_with_two_processes_each(cloud, sdk, tmp_path):
    from sagemaker.core.training.configs import Compute, SourceCode
    from sagemaker.train import ModelTrainer
    from sagemaker.train.distributed import Torchrun

    (tmp_path / "sum.py").write_text(ALL_REDUCE)
    trainer = ModelTrainer(
        training_image="any/pytorch:1",
        role=ROLE,
        sagemaker_session=sdk,
        source_code=SourceCode(source_dir=str(tmp_path), entry_script="sum.py"),
        compute=Compute(instance_type="ml.m5.large", instance_count=2),
        distributed=Torchrun(process_count_per_node=2),
        hyperparameters={"factor": 10},
        base_job_name="all-reduce",
    )
    trainer.train(wait=False)
    name = trainer._latest_training_job.training_job_name
    # Six processes import torch.
    description = cloud.wait_for_training(name, timeout=180)
    assert description["TrainingJobStatus"] == "Completed", description["FailureReason"]
    lines = cloud.training_lines(description["TrainingJobName"])
    said = sorted(line for line in lines if line.startswith("rank"))
    hosts = ["127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.2"]
    # 10 + 20 + 30 + 40: no rank's share is missing, none counts twice.
    assert said == [f"rank {r} of 4 on {host} sum 100.0" for r, host in enumerate(hosts)]
    key = f"{description['TrainingJobName']}/output/model.tar.gz"
    uri = description["ModelArtifacts"]["S3ModelArtifacts"]
    assert uri.endswith(key)
    model = cloud.archive_members(uri.removeprefix(f"s3://{BUCKET}/"))
    threads = str(max(1, os.cpu_count() // 4))
    assert json.loads(model["sum.json"]) == {"sum": 100.0, "threads": threads}


def test_mpi_is_refused_with_the_reason(cloud, sdk, tmp_path):
    from sagemaker.core.training.configs import Compute, SourceCode
    from sagemaker.train import ModelTrainer
    from sagemaker.train.distributed import MPI

    (tmp_path / "main.py").write_text("print('never')")
    trainer = ModelTrainer(
        training_image="any/pytorch:1",
        role=ROLE,
        sagemaker_session=sdk,
        source_code=SourceCode(source_dir=str(tmp_path), entry_script="main.py"),
        compute=Compute(instance_type="ml.m5.large", instance_count=2),
        distributed=MPI(process_count_per_node=1),
        base_job_name="mpi",
    )
    trainer.train(wait=False)
    description = cloud.wait_for_training(trainer._latest_training_job.training_job_name)
    assert "does not start MPI jobs" in description["FailureReason"]
    assert cloud.training_lines(description["TrainingJobName"]) == []


def test_stopping_reaches_every_host(cloud):
    script = """
import signal, sys, time
def leave(*_):
    print("leaving", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
time.sleep(60)
"""
    name = cloud.start_training(script, ResourceConfig=instances(2))
    until(lambda: cloud.training_lines(name).count("ready") == 2)
    cloud.sagemaker.stop_training_job(TrainingJobName=name)
    assert cloud.wait_for_training(name)["TrainingJobStatus"] == "Stopped"
    assert cloud.training_lines(name).count("leaving") == 2
