"""Jobs and objects that the tests of `studio` make in a local cloud."""

import io
import tarfile

TRIAL = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--kind")
lr = parser.parse_args().lr
if lr > {limit}:
    raise SystemExit("diverged")
print(f"score={{lr}}")
"""
# The handlers of a model that answers with what it is asked.
ECHO = """
def model_fn(model_dir):
    return model_dir

def predict_fn(data, model):
    return data
"""


def start_training(cloud, name, script, **fields):
    """Start a training job that runs a shell script; return its full name.

    Args:
        fields: of the request, beside or instead of the usual ones.
    """
    name = f"{cloud.run}-{name}"
    request = {
        "TrainingJobName": name,
        "AlgorithmSpecification": {
            "TrainingImage": cloud.training_image,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["/bin/sh", "-c", script],
        },
        "RoleArn": cloud.role,
        "OutputDataConfig": {"S3OutputPath": cloud.s3_uri("jobs")},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
    }
    cloud.client("sagemaker").create_training_job(**request | fields)
    return name


def start_tuning(cloud, name, limit, trials):
    """Start a search whose trials report `lr`, or fail above a limit; return its full name."""
    name = f"{cloud.run}-{name}"
    source = put(cloud, f"{name}.tar.gz", tar_gz({"trial.py": TRIAL.format(limit=limit).encode()}))
    ranges = {
        "ContinuousParameterRanges": [{"Name": "lr", "MinValue": "0.1", "MaxValue": "0.9"}],
        "CategoricalParameterRanges": [{"Name": "kind", "Values": ["a", "b"]}],
    }
    cloud.client("sagemaker").create_hyper_parameter_tuning_job(
        HyperParameterTuningJobName=name,
        HyperParameterTuningJobConfig={
            "Strategy": "Random",
            "HyperParameterTuningJobObjective": {"Type": "Maximize", "MetricName": "score"},
            "ResourceLimits": {
                "MaxNumberOfTrainingJobs": trials,
                "MaxParallelTrainingJobs": min(2, trials),
            },
            "ParameterRanges": ranges,
        },
        TrainingJobDefinition={
            "StaticHyperParameters": {
                "sagemaker_program": "trial.py",
                "sagemaker_submit_directory": source,
            },
            "AlgorithmSpecification": {
                "TrainingImage": cloud.training_image,
                "TrainingInputMode": "File",
                "MetricDefinitions": [{"Name": "score", "Regex": "score=([0-9.]+)"}],
            },
            "RoleArn": cloud.role,
            "OutputDataConfig": {"S3OutputPath": cloud.s3_uri("search")},
            "ResourceConfig": {
                "InstanceType": "ml.m5.large",
                "InstanceCount": 1,
                "VolumeSizeInGB": 1,
            },
            "StoppingCondition": {"MaxRuntimeInSeconds": 60},
        },
    )
    return name


def start_processing(cloud, name, script, count=1):
    """Start a processing job that runs a shell script; return its full name."""
    name = f"{cloud.run}-{name}"
    cluster = {"InstanceType": "ml.m5.large", "InstanceCount": count, "VolumeSizeInGB": 1}
    cloud.client("sagemaker").create_processing_job(
        ProcessingJobName=name,
        AppSpecification={
            "ImageUri": cloud.processing_image,
            "ContainerEntrypoint": ["/bin/sh", "-c", script],
        },
        RoleArn=cloud.role,
        ProcessingResources={"ClusterConfig": cluster},
    )
    return name


def echo_model(cloud):
    """Put the archive of a model that answers with what it is asked; return its address."""
    return put(cloud, "echo.tar.gz", tar_gz({"code/inference.py": ECHO.encode()}))


def create_config(cloud, name, model, counts):
    """Create a model, and an endpoint configuration of it; return the full name of both.

    Args:
        model: address of its archive.
        counts: {instance type: number of instances}; each is a variant.
    """
    client, name = cloud.client("sagemaker"), f"{cloud.run}-{name}"
    client.create_model(
        ModelName=name,
        ExecutionRoleArn=cloud.role,
        PrimaryContainer={"Image": cloud.inference_image, "ModelDataUrl": model},
    )
    variants = [
        {
            "VariantName": f"variant-{place}",
            "ModelName": name,
            "InstanceType": instance,
            "InitialInstanceCount": count,
        }
        for place, (instance, count) in enumerate(counts.items())
    ]
    client.create_endpoint_config(EndpointConfigName=name, ProductionVariants=variants)
    return name


def start_endpoint(cloud, name, model, counts=None):
    """Start an endpoint of a model's archive; return its full name."""
    name = create_config(cloud, name, model, counts or {"ml.m5.large": 1})
    cloud.client("sagemaker").create_endpoint(EndpointName=name, EndpointConfigName=name)
    return name


def tar_gz(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def put(cloud, key, content):
    """Put an object of this run to S3; return its address."""
    cloud.client("s3").put_object(Bucket=cloud.bucket, Key=f"{cloud.prefix}/{key}", Body=content)
    return cloud.s3_uri(key)
