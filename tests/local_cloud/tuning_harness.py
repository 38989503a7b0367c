"""What the tests of tuning jobs share: requests, scripts, waiting."""

import uuid

from harness import BUCKET, FINAL, ROLE, archive, until

SCORES = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--rate", type=float)
parser.add_argument("--depth", type=int)
parser.add_argument("--kind")
args = parser.parse_args()
print("score=-1000000")  # An early value, which the last one replaces.
print("score=%r" % ((args.rate - 0.01) ** 2 + (args.depth or 0) + (args.kind == "b")))
"""
# Reports a level of its own, by the number of the trial, once an epoch.
LEVELS = """
import os, time
levels, epochs, pause = {levels}, {epochs}, {pause}
number = int(os.environ["TRAINING_JOB_NAME"].split("-")[-2])
for epoch in range(epochs):
    print("score=%r" % levels[number - 1], flush=True)
    time.sleep(pause)
"""
RATE = {"Name": "rate", "MinValue": "0.001", "MaxValue": "0.1", "ScalingType": "Logarithmic"}
DEPTH = {"Name": "depth", "MinValue": "2", "MaxValue": "4", "ScalingType": "Linear"}
KIND = {"Name": "kind", "Values": ["a", "b"]}
RANGES = {
    "ContinuousParameterRanges": [RATE],
    "IntegerParameterRanges": [DEPTH],
    "CategoricalParameterRanges": [KIND],
}
MAXIMIZE = {"Type": "Maximize", "MetricName": "score"}


def levels(*values, epochs=1, pause=0):
    """A script whose n-th trial reports the n-th of `values`, `pause` seconds after each epoch."""
    return LEVELS.format(levels=values, epochs=epochs, pause=pause)


def definition(cloud, script=SCORES, static=None, **fields):
    """A HyperParameterTrainingJobDefinition for `script`, by the training toolkit's contract."""
    source = cloud.put(f"source/{uuid.uuid4().hex[:10]}.tar.gz", archive({"main.py": script}))
    return {
        "StaticHyperParameters": {
            "sagemaker_program": "main.py",
            "sagemaker_submit_directory": source,
            **(static or {}),
        },
        "AlgorithmSpecification": {
            "TrainingImage": "any/image:1",
            "TrainingInputMode": "File",
            "MetricDefinitions": [{"Name": "score", "Regex": r"score=([-0-9.e]+)"}],
        },
        "RoleArn": ROLE,
        "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/tune"},
        "ResourceConfig": {
            "InstanceType": "ml.m5.large",
            "InstanceCount": 1,
            "VolumeSizeInGB": 1,
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
        **fields,
    }


def request(cloud, script=SCORES, jobs=4, parallel=2, ranges=RANGES, static=None, **config):
    """A CreateHyperParameterTuningJob request; `config` goes into its configuration."""
    limits = {"MaxNumberOfTrainingJobs": jobs, "MaxParallelTrainingJobs": parallel}
    return {
        "HyperParameterTuningJobName": f"tune-{uuid.uuid4().hex[:10]}",
        "HyperParameterTuningJobConfig": {
            "Strategy": "Random",
            "HyperParameterTuningJobObjective": {"Type": "Minimize", "MetricName": "score"},
            "ResourceLimits": {key: value for key, value in limits.items() if value},
            "ParameterRanges": ranges,
            **config,
        },
        "TrainingJobDefinition": definition(cloud, script, static),
    }


def describe(cloud, name):
    return cloud.sagemaker.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)


def create(cloud, sent):
    """Start the tuning job of a request and return its name."""
    cloud.sagemaker.create_hyper_parameter_tuning_job(**sent)
    return sent["HyperParameterTuningJobName"]


def start(cloud, **arguments):
    return create(cloud, request(cloud, **arguments))


def wait(cloud, name):
    def ended():
        description = describe(cloud, name)
        return description if description["HyperParameterTuningJobStatus"] in FINAL else None

    return until(ended)


def trials(cloud, name, **arguments):
    """The training jobs of a tuning job, in the order of their numbers unless asked otherwise."""
    return cloud.sagemaker.list_training_jobs_for_hyper_parameter_tuning_job(
        HyperParameterTuningJobName=name, **{"MaxResults": 100, **arguments}
    )["TrainingJobSummaries"]


def tune(cloud, sent=None, **arguments):
    """Run a tuning job; return its description and the summaries of its trials."""
    name = create(cloud, sent) if sent else start(cloud, **arguments)
    return wait(cloud, name), trials(cloud, name)


def score(summary):
    return summary["FinalHyperParameterTuningJobObjectiveMetric"]["Value"]


def statuses(found):
    return [summary["TrainingJobStatus"] for summary in found]
