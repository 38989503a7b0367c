"""Jobs and objects that the tests of `studio` make in a local cloud."""

import io
import tarfile


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
