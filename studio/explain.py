"""Where a trained model looked, asked of its artifact in S3."""

import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np

from studio.jobs import split_uri


def fetch_model(cloud, uri, folder="build/model"):
    """Download and unpack a model.tar.gz; return its folder as a Path."""
    from vision.archives import extract

    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="model-") as scratch:
        archive = Path(scratch) / "model.tar.gz"
        bucket, key = split_uri(uri)
        cloud.client("s3").download_file(bucket, key, str(archive))
        extract(archive, folder)
    return folder


def where_it_looked(folder, picture: bytes, class_names) -> dict[str, np.ndarray]:
    """The square that the network sees, and over it where it found evidence for each class.

    Dict of "the picture" and the class names → uint8 (H, W, 3); Grad-CAM at the last feature map.
    """
    import torch

    from vision.classifier import load_classifier
    from vision.explain import grad_cam
    from vision.figures import overlay

    with warnings.catch_warnings():
        # What timm and captum import looks for a package of widgets when it is in a notebook.
        warnings.filterwarnings("ignore", "IProgress not found")
        classifier = load_classifier(folder)
        network, names = classifier.model, classifier.class_names
        image = classifier.decode(picture)
        X = classifier.preprocessing.normalise(image.unsqueeze(0)).repeat(len(class_names), 1, 1, 1)
        targets = torch.tensor([names.index(name) for name in class_names])
        heat = grad_cam(network, network.cam_layer, X, targets)
    pixels = image.permute(1, 2, 0).numpy()
    found = {name: overlay(pixels, where) for name, where in zip(class_names, heat)}
    return {"the picture": pixels, **found}
