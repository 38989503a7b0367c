"""Where a trained model looked, asked of its artifact in S3."""

import warnings

import numpy as np

from studio.jobs import fetch_archive


def fetch_model(cloud, uri, folder="build/model"):
    """Download and unpack a model.tar.gz; return its folder as a Path."""
    return fetch_archive(cloud, uri, folder)


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
    # Grey pictures, too, have three channels on a screen.
    pixels = image.expand(3, -1, -1).permute(1, 2, 0).numpy()
    found = {name: overlay(pixels, where) for name, where in zip(class_names, heat)}
    return {"the picture": pixels, **found}
