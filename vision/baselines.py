"""What a model must beat to be worth its training, measured on the same pictures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vision.classifier import Classifier
from vision.data import Entry, list_split, load_split, spread
from vision.errors import ExpectedError
from vision.features import backbone_features
from vision.metrics import mcnemar, share
from vision.models import build_model, pretrained_preprocessing

FEATURE_MODEL = "efficientnet_lite0"
# Measured on 2,000 pictures of Fashion-MNIST: 84.1% at 128 pixels, 85.8% at 160, 85.2% at 224;
# on 300 dogs 95.3% at 160 and 97.3% at 224, which takes twice the time.
FEATURE_SIZE = 160
# Of training and of test: enough for a yardstick, and soon computed on one core.
MAX_PICTURES = 2000
# Near the best of a cross-validation on both Fashion-MNIST (0.01) and dogs (0.001).
INVERSE_PENALTY = 0.01


@dataclass(frozen=True)
class Answers:
    """What the evaluated model said: entries, true classes (N) and predicted classes (N)."""

    entries: Sequence[Entry]
    labels: np.ndarray
    predicted: np.ndarray
    class_names: Sequence[str]

    def against(self, other: np.ndarray, numbers: Sequence[int]) -> dict[str, Any]:
        """Compare with the classes that `other` predicts for the pictures `numbers`."""
        labels = self.labels[numbers]
        correct, other_correct = self.predicted[numbers] == labels, other == labels
        return {
            "n": len(labels),
            **share(other_correct.sum(), len(labels)),
            "this_model_accuracy": float(correct.mean()),
            "mcnemar": mcnemar(correct, other_correct),
        }


def majority(answers: Answers, train_counts: Mapping[str, int] | None) -> dict[str, Any]:
    """Name always the most common class of the training, or without its counts of the test."""
    names = answers.class_names
    counts = train_counts or Counter(names[label] for label in answers.labels)
    common = max(range(len(names)), key=lambda i: counts.get(names[i], 0))
    everywhere = range(len(answers.labels))
    return {
        **answers.against(np.full(len(everywhere), common), everywhere),
        "class_name": names[common],
        "counted_on": "train" if train_counts else "test",
    }


def logistic_regression(
    answers: Answers, train: Path, max_pictures: int = MAX_PICTURES
) -> dict[str, Any]:
    """Fit a logistic regression on the features of a frozen, ImageNet-pretrained network.

    It learns from at most `max_pictures` pictures of the folder `train` and answers at most as
    many of the test, both spread evenly over the classes. Raises ExpectedError where the
    pictures cannot be read or the pretrained weights are missing.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names = answers.class_names
    network = build_model(FEATURE_MODEL, 3, len(names), pretrained=True)
    preprocessing = pretrained_preprocessing(FEATURE_MODEL, FEATURE_SIZE)

    def read(entries: Sequence[Entry]) -> tuple[np.ndarray, np.ndarray]:
        split = load_split(entries, names, FEATURE_SIZE, 3)
        features = backbone_features(network, preprocessing, split.images, 0)
        return features.numpy(), split.labels.numpy()

    X, y = read(spread(list_split(train), max_pictures))
    if y.min() == y.max():
        raise ExpectedError(f"the pictures taken from {train} are all of one class")
    model = make_pipeline(StandardScaler(), LogisticRegression(C=INVERSE_PENALTY, max_iter=500))
    model.fit(X, y)
    numbers = spread(range(len(answers.labels)), max_pictures)
    features, _ = read([answers.entries[i] for i in numbers])
    return {
        **answers.against(model.predict(features), numbers),
        "train_pictures": len(y),
        "feature_model": FEATURE_MODEL,
        "image_size": FEATURE_SIZE,
    }


def previous_model(answers: Answers, classifier: Classifier) -> dict[str, Any]:
    """Ask an earlier model; raises ExpectedError where it knows other classes."""
    names, shape = answers.class_names, classifier.preprocessing
    if set(classifier.class_names) != set(names):
        raise ExpectedError(
            f"it knows other classes ({', '.join(classifier.class_names)}) than this one"
        )
    split = load_split(answers.entries, names, shape.image_size, shape.channels)
    columns = [classifier.class_names.index(name) for name in names]
    predicted = classifier.probabilities(split.images)[:, columns].argmax(1).numpy()
    return answers.against(predicted, range(len(predicted)))
