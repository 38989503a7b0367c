"""A trained model with everything a prediction needs, and its form on disk."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as tensors_to_bytes
from torch import nn

from vision.errors import ExpectedError
from vision.models import MODEL_NAMES, Network, build_model
from vision.preprocessing import Preprocessing, decode, open_picture

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
# The version of model.json; a reader refuses one that it does not know.
SCHEMA_VERSION = 3
# One forward pass takes 256 small pictures, or as many as have a million values: 6 of 224×224 in
# colour. Larger ones are slower on processors, whose caches they leave: efficientnet_lite0 makes
# 45 to 52 pictures/s of 8 or 4 at once on one core, and 31 of 27.
MAX_BATCH = 256
MAX_BATCH_VALUES = 2**20


# What the answers about a picture and about its mirror images are averaged over, as the dimensions
# that are turned: as it is, left for right, then both of these upside down.
FLIPS = ((), (-1,), (-2,), (-2, -1))
ANSWER_VIEWS = (1, 2, 4)


def forward_batch_size(images: torch.Tensor) -> int:
    """Return how many of the pictures (N, C, H, W) one forward pass takes."""
    return max(1, min(MAX_BATCH, MAX_BATCH_VALUES // images[0].numel()))


def mean_logits(model: nn.Module, X: torch.Tensor, views: int) -> torch.Tensor:
    """Return logits (N, classes), each the mean over so many FLIPS of what the model is given."""
    if views == 1:
        return model(X)
    return torch.stack([model(X.flip(turned)) for turned in FLIPS[:views]]).mean(0)


@dataclass
class Classifier:
    """From pictures to class probabilities: validation, evaluate.py and the endpoint share it.

    `temperature` divides the logits (Guo et al. 2017, arXiv:1706.04599); under a confidence of
    `threshold` no label is given. An answer is the mean over `answer_views` FLIPS. `facts` is what
    else model.json tells about the training.
    """

    model_name: str
    model: Network
    preprocessing: Preprocessing
    class_names: list[str]
    temperature: float = 1.0
    threshold: float = 0.0
    answer_views: int = 1
    facts: dict[str, Any] = field(default_factory=dict)

    @torch.inference_mode()
    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (N, classes) on the CPU for uint8 pictures (N, C, H, W)."""
        device = next(self.model.parameters()).device
        self.model.eval()
        batches = [
            mean_logits(
                self.model, self.preprocessing.normalise(batch.to(device)), self.answer_views
            )
            .float()
            .cpu()
            for batch in images.split(forward_batch_size(images))
        ]
        return torch.cat(batches)

    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        """Return calibrated float64 probabilities (N, classes) for uint8 (N, C, H, W)."""
        logits = self.logits(images).double()
        return torch.softmax(logits / self.temperature, dim=1)

    def decode(self, data: bytes, max_bytes: int | None = None) -> torch.Tensor:
        """Return the uint8 tensor (C, H, W) of a picture's bytes; raises PictureError."""
        image = open_picture(data, max_bytes)
        return decode(image, self.preprocessing.image_size, self.preprocessing.channels)

    def answer(self, probabilities: torch.Tensor) -> dict[str, Any]:
        """Turn the probabilities (classes) of one picture into label, confidence and scores."""
        scores = dict(zip(self.class_names, probabilities.tolist(), strict=True))
        label = max(scores, key=scores.get)
        confidence = scores[label]
        if confidence < self.threshold:
            label = None
        return {"label": label, "confidence": confidence, "scores": scores}

    def description(self) -> dict[str, Any]:
        """Return the content of model.json."""
        return {
            "schema_version": SCHEMA_VERSION,
            "architecture": self.model_name,
            "head_hidden": list(self.model.head_hidden),
            "dropout": self.model.dropout,
            "class_names": self.class_names,
            **asdict(self.preprocessing),
            "temperature": self.temperature,
            "threshold": self.threshold,
            "answer_views": self.answer_views,
            **self.facts,
        }

    def save(self, folder: str | Path, code: Sequence[str | Path] = ()) -> None:
        """Write the artifact: weights, model.json and, under code/, copies of `code`.

        Everything is written beside its place first and then renamed, the description last, so
        that a reader never meets half an artifact. A pair (source, name) renames a copy.

        Raises ExpectedError where a weight is not a finite number.
        """
        weights = {k: v.contiguous().cpu() for k, v in self.model.state_dict().items()}
        broken = [name for name, weight in weights.items() if not weight.isfinite().all()]
        if broken:
            raise ExpectedError(
                f"the weights {', '.join(broken[:3])} are not finite numbers: the model is not "
                "saved; lower --lr or set --precision float32"
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".partial-{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            (partial / WEIGHTS).write_bytes(tensors_to_bytes(weights))
            text = json.dumps(self.description(), indent=2, allow_nan=False)
            (partial / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
            (partial / "code").mkdir()
            for source, name in code:
                _copy(Path(source), partial / "code" / name)
            (folder / DESCRIPTION).unlink(missing_ok=True)
            shutil.rmtree(folder / "code", ignore_errors=True)
            for name in ("code", WEIGHTS, DESCRIPTION):
                (partial / name).replace(folder / name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    else:
        shutil.copyfile(source, target)


def load_classifier(folder: str | Path, device: str | torch.device = "cpu") -> Classifier:
    """Read an artifact that `Classifier.save` wrote; nothing is unpickled.

    Raises ExpectedError where a file is missing, damaged or of another version.
    """
    folder = Path(folder)
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            raise ExpectedError(f"{folder} holds no {name}: name the folder of a trained model")
    try:
        described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if described["schema_version"] != SCHEMA_VERSION:
            raise ExpectedError(
                f"{folder / DESCRIPTION} has version {described['schema_version']}, this program "
                f"reads {SCHEMA_VERSION}: use the code that the model came with"
            )
        name, class_names = described["architecture"], described["class_names"]
        if name not in MODEL_NAMES:
            raise ExpectedError(f"{folder / DESCRIPTION} asks for {name!r}: not a known model")
        preprocessing = Preprocessing(
            described["image_size"],
            described["channels"],
            tuple(described["mean"]),
            tuple(described["std"]),
        )
        # Built without memory: drawing VGG-16's first weights would take longer than reading them.
        with torch.device("meta"):
            model = build_model(
                name,
                preprocessing.channels,
                len(class_names),
                head_hidden=described["head_hidden"],
                dropout=described["dropout"],
            )
        model.load_state_dict(load_tensors((folder / WEIGHTS).read_bytes()), assign=True)
        temperature, threshold = described["temperature"], described["threshold"]
        answer_views = described["answer_views"]
        if answer_views not in ANSWER_VIEWS:
            raise ValueError(f"answer_views is {answer_views!r}")
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ExpectedError(
            f"the model in {folder} is damaged ({reason}): train it again"
        ) from error
    known = {
        "schema_version",
        "architecture",
        "head_hidden",
        "dropout",
        "class_names",
        "image_size",
        "channels",
        "mean",
        "std",
        "temperature",
        "threshold",
        "answer_views",
    }
    facts = {key: value for key, value in described.items() if key not in known}
    return Classifier(
        name,
        model.to(device).eval(),
        preprocessing,
        class_names,
        temperature,
        threshold,
        answer_views,
        facts,
    )
