"""Which images can be run without containers: those whose program is the job's own script.

An image is a name here. Where a job brings its code, the code runs with this machine's Python,
whatever the image is called. An image whose program is inside it cannot be run, unless the user
says what runs in its place: `$LOCAL_CLOUD_IMAGES` names a JSON file that maps images to commands,

    {"my-registry/forecaster": ["python3", "/home/me/forecaster/train.py"]}

The key is the image's full name, or the name without its tag or digest. The file is read anew for
every job.
"""

import json
import os
import platform
import re

from local_cloud.errors import invalid

# Repositories of AWS's built-in algorithms: Amazon SageMaker Developer Guide, "Docker Registry
# Paths and Example Code". `sagemaker-xgboost` is not among them: it runs scripts, too.
BUILT_IN = (
    "blazingtext",
    "factorization-machines",
    "forecasting-deepar",
    "image-classification",
    "ipinsights",
    "kmeans",
    "knn",
    "lda",
    "linear-learner",
    "ntm",
    "object-detection",
    "object2vec",
    "pca",
    "randomcutforest",
    "semantic-segmentation",
    "seq2seq",
    "xgboost",
)
MAP = "LOCAL_CLOUD_IMAGES"
TAG = re.compile(r"(@[^/]*|:[^/:]*)$")


def check_image(image, brings_code, needs):
    """Refuse an image that cannot be run here.

    Args:
        image: name of the image.
        brings_code: whether the request says what to run.
        needs: the ways in which a request can say so, for the message.

    Raises:
        ServiceError: ValidationException with the reason.
    """
    if mapped_command(image) is not None:
        return
    repository = TAG.sub("", image).rpartition("/")[2]
    if repository in BUILT_IN:
        raise invalid(
            f"local_cloud runs scripts, not images, and {image!r} is a built-in algorithm of "
            "SageMaker, whose program is inside the image."
        )
    if not brings_code:
        raise invalid(
            f"local_cloud runs scripts, not images, and this job brings none for {image!r}: it has "
            f"{needs}, and ${MAP} names no command for the image."
        )


def mapped_command(image):
    """The command that stands for an image by the user's own file, or None.

    Raises:
        ServiceError: the file is not of the form that the module describes.
    """
    path = os.environ.get(MAP)
    if not path:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            commands = json.load(file)
        command = commands.get(image) or commands.get(TAG.sub("", image))
    except (OSError, ValueError, AttributeError) as error:
        raise invalid(f"${MAP} cannot be read as a JSON object: {error}") from error
    if command is None:
        return None
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        raise invalid(f"${MAP} must map {image!r} to a list of strings.")
    return command


def description(image):
    """What stands in for the image, for the people who read a job's status."""
    return (
        f"Preparing the instances for training: no container here, the job's code runs with this "
        f"machine's Python {platform.python_version()} in place of the image {image}"
    )
