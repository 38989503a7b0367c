"""The contract of the sagemaker-training toolkit: code, variables, arguments, paths, packages."""

import json
import os
import sysconfig
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from harness import BUCKET, archive
from packages import wheel

SHOWS_ENVIRONMENT = """
import json, os
names = [name for name in os.environ if name.startswith("SM_")]
with open(os.path.join(os.environ["SM_OUTPUT_DATA_DIR"], "environment.json"), "w") as file:
    json.dump({name: os.environ[name] for name in names}, file)
"""


def channel(name, uri, **fields):
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, **fields}


def output(cloud, description, name):
    members = cloud.archive_members(f"out/{description['TrainingJobName']}/output/output.tar.gz")
    return members[name]


def lines_of(cloud, description):
    assert description["TrainingJobStatus"] == "Completed", description["FailureReason"]
    return cloud.training_lines(description["TrainingJobName"])


@pytest.fixture(scope="module")
def environment(cloud):
    """(the `SM_*` variables of a job, its description)."""
    uri = cloud.put("toolkit-data/a.csv", b"1,2")
    description = cloud.train(
        SHOWS_ENVIRONMENT,
        hyperparameters={
            "batch-size": "32",
            "sizes": "[1, 2]",
            "text": "two words",
            "data": "/opt/ml/input/data/train",
            "sagemaker_container_log_level": "10",
            "sagemaker_something_else": "true",
        },
        InputDataConfig=[channel("train", uri, ContentType="text/csv", InputMode="FastFile")],
    )
    assert description["TrainingJobStatus"] == "Completed", description["FailureReason"]
    return json.loads(output(cloud, description, "environment.json")), description


def test_variables_are_those_of_the_toolkit(environment):
    variables, description = environment
    ml = variables["SM_MODEL_DIR"].removesuffix("/model")
    assert Path(ml).is_absolute()
    expected = {
        "SM_CHANNELS": '["train"]',
        "SM_CHANNEL_TRAIN": f"{ml}/input/data/train",
        "SM_CURRENT_HOST": "127.0.0.1",
        "SM_CURRENT_INSTANCE_TYPE": "ml.m5.large",
        "SM_CURRENT_INSTANCE_GROUP": "homogeneousCluster",
        "SM_FRAMEWORK_PARAMS": '{"sagemaker_something_else":true}',
        "SM_HOSTS": '["127.0.0.1"]',
        "SM_HP_BATCH-SIZE": "32",
        "SM_HP_BATCH_SIZE": "32",
        "SM_HP_DATA": f"{ml}/input/data/train",
        "SM_HP_SIZES": "[1,2]",
        "SM_HP_TEXT": "two words",
        "SM_INPUT_CONFIG_DIR": f"{ml}/input/config",
        "SM_INPUT_DIR": f"{ml}/input",
        "SM_IS_HETERO": "false",
        "SM_LOG_LEVEL": "10",
        "SM_MODULE_DIR": description["HyperParameters"]["sagemaker_submit_directory"],
        "SM_MODULE_NAME": "main",
        "SM_NUM_CPUS": str(os.cpu_count()),
        "SM_OUTPUT_DATA_DIR": f"{ml}/output/data",
        "SM_OUTPUT_DIR": f"{ml}/output",
        "SM_OUTPUT_INTERMEDIATE_DIR": f"{ml}/output/intermediate",
        "SM_USER_ENTRY_POINT": "main.py",
    }
    assert {name: variables.get(name) for name in expected} == expected
    assert json.loads(variables["SM_HPS"])["sizes"] == [1, 2]
    assert json.loads(variables["SM_USER_ARGS"])[:2] == ["--batch-size", "32"]
    assert json.loads(variables["SM_INPUT_DATA_CONFIG"]) == {
        "train": {
            "TrainingInputMode": "FastFile",
            "S3DistributionType": "FullyReplicated",
            "RecordWrapperType": "None",
            "ContentType": "text/csv",
        }
    }


def test_the_training_environment_says_the_same_as_the_variables(environment):
    variables, description = environment
    described = json.loads(variables["SM_TRAINING_ENV"])
    assert described["job_name"] == description["TrainingJobName"]
    assert described["is_master"] is True
    assert described["master_hostname"] == described["current_host"] == "127.0.0.1"
    assert described["hyperparameters"] == json.loads(variables["SM_HPS"])
    assert described["resource_config"] == json.loads(variables["SM_RESOURCE_CONFIG"])
    assert described["channel_input_dirs"] == {"train": variables["SM_CHANNEL_TRAIN"]}


def test_code_that_spells_out_opt_ml_runs_as_it_is(cloud):
    cloud.put("spelled/paths.txt", b"/opt/ml/in-the-data\n")
    script = """
import configparser, json, pathlib, subprocess
model = json.load(open("settings.json"))["model"]
assert open("/opt/ml/input/data/spelled/paths.txt").read() == "/opt" + "/ml/in-the-data\\n"
assert len("s3://bucket/opt/ml/x") == 20 and len("/opt/mlflow") == 11
assert pathlib.Path("weights.bin").read_bytes() == bytes([0]) + b"/opt" + b"/ml"
parser = configparser.ConfigParser()
parser.read("paths.cfg")
subprocess.run(["sh", "helper.sh"], check=True)
print("kept in", model, "and", parser["paths"]["output"], flush=True)
open(model + "/model.txt", "w").write("m")
raise SystemExit(f"nothing in {parser['paths']['output']}")
"""
    description = cloud.train(
        script,
        files={
            "settings.json": '{"model": "/opt/ml/model"}',
            "paths.cfg": "[paths]\noutput = /opt/ml/output/data\n",
            "helper.sh": "set -e\ntest -d /opt/ml/checkpoints && echo out > /opt/ml/model/sh.txt\n",
            "weights.bin": b"\x00/opt/ml",
        },
        InputDataConfig=[channel("spelled", f"s3://{BUCKET}/spelled/")],
    )
    reason = "kept in /opt/ml/model and /opt/ml/output/data\nnothing in /opt/ml/output/data"
    assert description["FailureReason"] == f"AlgorithmError: {reason}, exit code: 1"
    printed = cloud.training_lines(description["TrainingJobName"])
    assert "kept in /opt/ml/model and /opt/ml/output/data" in printed
    assert not any(cloud.server["work_folder"] in line for line in printed)


def test_a_shell_script_gets_the_arguments(cloud):
    description = cloud.train(
        "print('not this one')",
        hyperparameters={"sagemaker_program": "run.sh", "name": "it's two"},
        files={"run.sh": '#!/bin/sh\necho "got $1 $2 in $SM_MODEL_DIR"\n'},
    )
    assert "got --name it's two in /opt/ml/model" in lines_of(cloud, description)


def test_a_package_is_installed_and_run_as_a_module(cloud):
    setup = "from setuptools import setup\nsetup(name='parcel', version='1', packages=['parcel'])\n"
    description = cloud.train(
        "",
        hyperparameters={"sagemaker_program": "parcel", "n": "3"},
        files={
            "setup.py": setup,
            "parcel/__init__.py": "",
            "parcel/__main__.py": "import sys; print('unwrapped', sys.argv[1:])",
        },
    )
    assert "unwrapped ['-n', '3']" in lines_of(cloud, description)


@pytest.mark.parametrize("where", ["archive", "folder"])
def test_code_can_be_in_a_channel(cloud, where):
    if where == "archive":
        cloud.put("in-channel/archive/sourcedir.tar.gz", archive({"main.py": "print('found')"}))
        submitted = "/opt/ml/input/data/source/sourcedir.tar.gz"
    else:
        cloud.put("in-channel/folder/main.py", b"print('found')")
        submitted = "/opt/ml/input/data/source"
    description = cloud.train(
        "print('not this one')",
        hyperparameters={"sagemaker_submit_directory": submitted},
        InputDataConfig=[channel("source", f"s3://{BUCKET}/in-channel/{where}/")],
    )
    assert "found" in lines_of(cloud, description)


def test_code_that_is_nowhere_fails_with_a_sentence(cloud):
    description = cloud.train(
        "", hyperparameters={"sagemaker_submit_directory": "/opt/ml/input/data/none/code.tar.gz"}
    )
    assert "neither in S3 nor in a channel" in description["FailureReason"]


def test_torchrun_of_the_toolkit_sees_what_the_job_installed(cloud):
    pytest.importorskip("torch")  # Its first line names this machine's Python, which does not.
    files = {
        "requirements.txt": "--no-index\n./tiny_box-1.0-py3-none-any.whl\n",
        "tiny_box-1.0-py3-none-any.whl": wheel("tiny_box", "1.0", "WORD = 'boxed'"),
    }
    description = cloud.train(
        "import os, tiny_box; e = os.environ; print(tiny_box.WORD, e['RANK'], e['WORLD_SIZE'])",
        hyperparameters={"sagemaker_torch_distributed_enabled": "true"},
        files=files,
    )
    assert "boxed 0 1" in lines_of(cloud, description)


@pytest.mark.parametrize(
    "launcher",
    [
        "sagemaker_mpi_enabled",
        "sagemaker_parameter_server_enabled",
        "sagemaker_distributed_dataparallel_enabled",
    ],
)
def test_other_launchers_are_refused_at_creation(cloud, launcher):
    with pytest.raises(ClientError, match=launcher) as refused:
        cloud.start_training("print(1)", hyperparameters={launcher: "true"})
    assert refused.value.response["Error"]["Code"] == "ValidationException"


def test_installing_leaves_this_machine_as_it_is(cloud):
    def installed():
        folder = Path(sysconfig.get_path("purelib"))
        # Files, not folders: Python may put what it compiles beside them meanwhile.
        files = (path for path in (*folder.glob("*"), *folder.glob("*/*")) if path.is_file())
        return {(p, p.stat().st_mtime_ns) for p in files if p.parent.name != "__pycache__"}

    name = "numpy"  # Of the same name as a package that is here.
    files = {
        "requirements.txt": "--no-index\n./numpy-99.0-py3-none-any.whl\n",
        "numpy-99.0-py3-none-any.whl": wheel(name, "99.0", "WORD = 'the job s own numpy'"),
    }
    before = installed()
    description = cloud.train("import numpy; print(numpy.WORD)", files=files)
    assert "the job s own numpy" in lines_of(cloud, description)
    assert installed() == before


def test_an_archive_of_a_longer_name_is_not_the_code(cloud):
    request = cloud.training_request("print(1)")
    parameters = request["HyperParameters"]
    parameters["sagemaker_submit_directory"] = parameters["sagemaker_submit_directory"][:-1]
    cloud.sagemaker.create_training_job(**request)
    description = cloud.wait_for_training(request["TrainingJobName"])
    assert "No S3 object found at S3 URL" in description["FailureReason"]
