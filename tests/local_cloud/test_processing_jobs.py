"""Processing jobs by the SDK's processors and by boto3: inputs, outputs, arguments, exit codes."""

import json
import uuid

import pytest
from botocore.exceptions import ClientError
from harness import BUCKET, FINAL, ROLE, until

SUMMARISE = """
import json, os, sys
source, target = sys.argv[1], sys.argv[2]
names = sorted(os.listdir(source))
print("options", sys.argv[3:], flush=True)
print("beside", sorted(os.listdir(os.path.dirname(sys.argv[0]) or ".")), flush=True)
with open(os.path.join(target, "names.json"), "w") as file:
    json.dump(names, file)
"""
IN, OUT = "/opt/ml/processing/input/data", "/opt/ml/processing/output/names"


def request(*arguments, command=("python3", "-c"), **fields):
    return {
        "ProcessingJobName": f"processing-{uuid.uuid4().hex[:12]}",
        "ProcessingResources": {
            "ClusterConfig": {
                "InstanceCount": 1,
                "InstanceType": "ml.m5.large",
                "VolumeSizeInGB": 1,
            }
        },
        "AppSpecification": {
            "ImageUri": "any/image:1",
            "ContainerEntrypoint": list(command),
            "ContainerArguments": list(arguments),
        },
        "RoleArn": ROLE,
        **fields,
    }


def source(name, uri, path):
    s3_input = {"S3Uri": uri, "LocalPath": path, "S3DataType": "S3Prefix", "S3InputMode": "File"}
    return {"InputName": name, "S3Input": s3_input}


def target(name, uri, path):
    s3_output = {"S3Uri": uri, "LocalPath": path, "S3UploadMode": "EndOfJob"}
    return {"OutputName": name, "S3Output": s3_output}


def wait(cloud, name):
    def ended():
        description = cloud.sagemaker.describe_processing_job(ProcessingJobName=name)
        return description if description["ProcessingJobStatus"] in FINAL else None

    return until(ended)


def process(cloud, *arguments, **fields):
    sent = request(*arguments, **fields)
    if not arguments:
        del sent["AppSpecification"]["ContainerArguments"]
    cloud.sagemaker.create_processing_job(**sent)
    return wait(cloud, sent["ProcessingJobName"])


def lines(cloud, description):
    name = description["ProcessingJobName"]
    return cloud.lines("/aws/sagemaker/ProcessingJobs", name + "/")


def test_inputs_arguments_and_outputs_by_boto3(cloud):
    cloud.put("items/a b+c%20?é.txt", b"1")
    cloud.put("items/deep/b.txt", b"2")
    script = cloud.put("scripts/summarise.py", SUMMARISE.encode())
    cloud.put("scripts/summarise.py.bak", b"not asked for")
    folder = "/opt/ml/processing/input/script"
    description = process(
        cloud,
        IN,
        OUT,
        "--mode",
        "quick",
        command=("python3", f"{folder}/summarise.py"),
        ProcessingInputs=[
            source("data", f"s3://{BUCKET}/items/", IN),
            source("script", script, folder),
        ],
        ProcessingOutputConfig={"Outputs": [target("names", f"s3://{BUCKET}/names", OUT)]},
    )
    assert description["ProcessingJobStatus"] == "Completed", description.get("FailureReason")
    assert json.loads(cloud.get("names/names.json")) == ["a b+c%20?é.txt", "deep"]
    assert "options ['--mode', 'quick']" in lines(cloud, description)
    assert "beside ['summarise.py']" in lines(cloud, description)
    assert description["CreationTime"] <= description["ProcessingStartTime"]
    assert description["ProcessingStartTime"] <= description["ProcessingEndTime"]


def test_environment_and_configuration_are_there(cloud):
    # One line: the service's pattern for arguments, ".*", refuses line breaks.
    script = (
        "from os import environ as e, path; "
        "print('dir', e['DATA_DIR'], e['OTHER'], path.isdir(e['DATA_DIR']))"
    )
    cloud.put("items/a.txt", b"1")
    description = process(
        cloud,
        script,
        Environment={"DATA_DIR": IN, "OTHER": "x"},
        ProcessingInputs=[source("data", f"s3://{BUCKET}/items/", IN)],
    )
    assert f"dir {IN} x True" in lines(cloud, description)


def test_exit_code_and_last_words_of_a_failure(cloud):
    script = f"open('{OUT}/half.txt', 'w').write('half'); import sys; sys.exit('no such column')"
    description = process(
        cloud,
        script,
        ProcessingOutputConfig={"Outputs": [target("names", f"s3://{BUCKET}/half", OUT)]},
    )
    assert description["ProcessingJobStatus"] == "Failed"
    assert description["FailureReason"] == "AlgorithmError: no such column, exit code: 1"
    assert cloud.get("half/half.txt") == b"half"


def test_a_command_that_does_not_exist_fails_with_a_sentence(cloud):
    description = process(cloud, "x", command=("no-such-program",))
    assert description["ProcessingJobStatus"] == "Failed"
    assert "cannot run 'no-such-program'" in description["FailureReason"]


def test_missing_input_fails_with_a_sentence(cloud):
    inputs = [source("data", f"s3://{BUCKET}/nowhere/", IN)]
    description = process(cloud, "print(1)", ProcessingInputs=inputs)
    assert "No S3 objects found" in description["FailureReason"]


def test_code_runs_where_it_is_wherever_the_command_names_it(cloud):
    code = "print(open('/opt/ml/processing/input/code/data.txt').read())"
    cloud.put("named/code.py", code.encode())
    cloud.put("named/data.txt", b"found")
    folder = "/opt/ml/processing/input/code"
    inputs = [source("code", f"s3://{BUCKET}/named/", f"{folder}/")]
    sent = request(f"{folder}/code.py", command=("python3",), ProcessingInputs=inputs)
    cloud.sagemaker.create_processing_job(**sent)
    description = wait(cloud, sent["ProcessingJobName"])
    assert description["ProcessingJobStatus"] == "Completed", description
    assert "found" in cloud.lines("/aws/sagemaker/ProcessingJobs", sent["ProcessingJobName"])


def test_stop_and_time_limit(cloud):
    sent = request("import time; print('ready', flush=True); time.sleep(60)")
    cloud.sagemaker.create_processing_job(**sent)
    name = sent["ProcessingJobName"]
    until(lambda: cloud.lines("/aws/sagemaker/ProcessingJobs", name + "/"))
    cloud.sagemaker.stop_processing_job(ProcessingJobName=name)
    assert wait(cloud, name)["ProcessingJobStatus"] == "Stopped"

    limit = {"MaxRuntimeInSeconds": 1}
    description = process(cloud, "import time; time.sleep(60)", StoppingCondition=limit)
    assert description["ProcessingJobStatus"] == "Stopped"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"command": ()}, "ContainerEntrypoint"),
        ({"ProcessingInputs": [source("d", "s3://b/k", "/etc")]}, "below /opt/ml"),
        ({"ProcessingInputs": [source("d", "s3://b/k", "/opt/ml/../../x")]}, "below /opt/ml"),
        ({"ProcessingInputs": [{"InputName": "d"}]}, "needs an S3Input"),
    ],
)
def test_what_cannot_run_is_refused_at_creation(cloud, fields, words):
    sent = request("print(1)", **fields)
    if not sent["AppSpecification"]["ContainerEntrypoint"]:
        del sent["AppSpecification"]["ContainerEntrypoint"]
    with pytest.raises(ClientError, match=words) as refused:
        cloud.sagemaker.create_processing_job(**sent)
    assert refused.value.response["Error"]["Code"] == "ValidationException"


def test_framework_processor_of_the_sdk(cloud, sdk, tmp_path):
    from sagemaker.core.processing import FrameworkProcessor
    from sagemaker.core.shapes import (
        ProcessingInput,
        ProcessingOutput,
        ProcessingS3Input,
        ProcessingS3Output,
    )

    (tmp_path / "words.py").write_text("GREETING = 'from the helper'")
    (tmp_path / "run.py").write_text("import words\nprint(words.GREETING)\n" + SUMMARISE)
    cloud.put("few/one.txt", b"1")
    processor = FrameworkProcessor(
        role=ROLE,
        image_uri="any/image:1",
        command=["python3"],
        instance_count=1,
        instance_type="ml.m5.large",
        sagemaker_session=sdk,
    )
    s3_input = ProcessingS3Input(
        s3_uri=f"s3://{BUCKET}/few/", local_path=IN, s3_data_type="S3Prefix", s3_input_mode="File"
    )
    s3_output = ProcessingS3Output(
        s3_uri=f"s3://{BUCKET}/few-names", local_path=OUT, s3_upload_mode="EndOfJob"
    )
    processor.run(
        code="run.py",
        source_dir=str(tmp_path),
        arguments=[IN, OUT],
        inputs=[ProcessingInput(input_name="data", s3_input=s3_input)],
        outputs=[ProcessingOutput(output_name="names", s3_output=s3_output)],
        wait=False,
        logs=False,
    )
    description = wait(cloud, processor.latest_job.processing_job_name)
    assert description["ProcessingJobStatus"] == "Completed", description.get("FailureReason")
    assert json.loads(cloud.get("few-names/names.json")) == ["one.txt"]
    assert "from the helper" in lines(cloud, description)


def test_two_hosts_share_the_input_and_write_one_output(cloud):
    for letter in "abc":
        cloud.put(f"divided/{letter}.txt", b"1")
    data = source("data", f"s3://{BUCKET}/divided/", IN)
    data["S3Input"]["S3DataDistributionType"] = "ShardedByS3Key"
    script = f"""
import json, os
config = json.load(open("/opt/ml/config/resourceconfig.json"))
number = config["hosts"].index(config["current_host"]) + 1
job = json.load(open("/opt/ml/config/processingjobconfig.json"))
assert job["ProcessingResources"]["ClusterConfig"]["InstanceCount"] == len(config["hosts"]) == 2
for name in (f"only-{{number}}", "same"):
    open("{OUT}/" + name, "w").write(" ".join(sorted(os.listdir("{IN}"))))
"""
    outputs = {"Outputs": [target("names", f"s3://{BUCKET}/divided-names", OUT)]}
    code = "/opt/ml/processing/input/code"
    uri = cloud.put("divided-code/run.py", script.encode())
    sent = request(
        "--quick",
        command=("python3", f"{code}/run.py"),
        ProcessingInputs=[data, source("code", uri, code)],
        ProcessingOutputConfig=outputs,
    )
    sent["ProcessingResources"]["ClusterConfig"]["InstanceCount"] = 2
    cloud.sagemaker.create_processing_job(**sent)
    description = wait(cloud, sent["ProcessingJobName"])
    assert description["ProcessingJobStatus"] == "Completed", description.get("FailureReason")
    assert cloud.get("divided-names/only-1") == cloud.get("divided-names/same") == b"a.txt c.txt"
    assert cloud.get("divided-names/only-2") == b"b.txt"


def test_a_continuous_output_is_in_s3_before_the_job_ends(cloud):
    output = target("names", f"s3://{BUCKET}/continuous", OUT)
    output["S3Output"]["S3UploadMode"] = "Continuous"
    script = f"import time; open('{OUT}/early.txt', 'w').write('early'); time.sleep(60)"
    sent = request(script, ProcessingOutputConfig={"Outputs": [output]})
    cloud.sagemaker.create_processing_job(**sent)

    def uploaded():
        found = cloud.s3.list_objects_v2(Bucket=BUCKET, Prefix="continuous/")
        return [entry["Key"] for entry in found.get("Contents", [])]

    assert until(uploaded) == ["continuous/early.txt"]
    name = sent["ProcessingJobName"]
    description = cloud.sagemaker.describe_processing_job(ProcessingJobName=name)
    assert description["ProcessingJobStatus"] == "InProgress"
    cloud.sagemaker.stop_processing_job(ProcessingJobName=name)
    assert wait(cloud, name)["ProcessingJobStatus"] == "Stopped"


def test_code_and_manifest_as_inputs_and_an_exit_message(cloud):
    cloud.put("chosen/one.txt", b"1")
    cloud.put("chosen/two.txt", b"2")
    manifest = [{"prefix": f"s3://{BUCKET}/chosen/"}, "two.txt"]
    chosen = source("data", cloud.put("chosen.json", json.dumps(manifest).encode()), IN)
    chosen["S3Input"]["S3DataType"] = "ManifestFile"
    code = "/opt/ml/processing/input/code"
    script = f"""
import os
open("/opt/ml/output/message", "w").write(f"read {{os.listdir('{IN}')}}")
print("in", os.path.dirname("{IN}/two.txt"))
"""
    uri = cloud.put("spelled-code/run.py", script.encode())
    description = process(
        cloud,
        command=("python3", f"{code}/run.py"),
        ProcessingInputs=[chosen, source("code", uri, code)],
    )
    assert description["ProcessingJobStatus"] == "Completed", description.get("FailureReason")
    assert description["ExitMessage"] == "read ['two.txt']"
    assert f"in {IN}" in lines(cloud, description)


@pytest.mark.parametrize(
    ("member", "value", "words"),
    [
        ("S3InputMode", "Pipe", "input mode File, not Pipe"),
        ("S3CompressionType", "Gzip", "must be None in File mode"),
        ("S3Uri", "https://bucket/key", "begin with s3://"),
    ],
    ids=["pipe", "gzip", "https"],
)
def test_inputs_that_cannot_be_read_are_refused_at_creation(cloud, member, value, words):
    data = source("data", "s3://b/k", IN)
    data["S3Input"][member] = value
    with pytest.raises(ClientError, match=words) as refused:
        cloud.sagemaker.create_processing_job(**request("1", ProcessingInputs=[data]))
    assert refused.value.response["Error"]["Code"] == "ValidationException"


def test_too_many_hosts_are_refused(cloud):
    sent = request("1")
    sent["ProcessingResources"]["ClusterConfig"]["InstanceCount"] = 9
    with pytest.raises(ClientError, match="processing job usage' is 8") as refused:
        cloud.sagemaker.create_processing_job(**sent)
    assert refused.value.response["Error"]["Code"] == "ResourceLimitExceeded"
