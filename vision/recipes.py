"""Recipes: what each hyperparameter is where the command line does not say."""

import argparse

from vision.models import SMALL_RESNETS

SMALL = {
    "model": "small_resnet",
    "pretrained": False,
    "trainable": "all",
    "head_hidden": (),
    "dropout": 0.0,
    "epochs": 10,
    "batch_size": 256,
    "optimizer": "adamw",
    "lr": 0.01,
    "schedule": "cosine",
    "warmup": 0.25,
    "gamma": 0.9,
    "weight_decay": 0.01,
    "label_smoothing": 0.0,
    "ordinal": 0.0,
    "augment": "shift",
    "mixup": 0.0,
    "balance": "none",
    "clip_norm": 0.0,
    "ema": 0.0,
    "patience": 5,
    "views": 1,
    "answer_views": 1,
}
# More network, more passes and harder pictures, for the last percent.
SMALL_LONG = SMALL | {
    "model": "small_resnet_wide",
    "epochs": 30,
    "warmup": 0.1,
    "weight_decay": 0.02,
    "label_smoothing": 0.05,
    "augment": "shift-erase",
    "patience": 0,
}
# A frozen backbone: what is trained is one layer, on features that are computed once.
PHOTOS = SMALL | {
    "model": "efficientnet_lite0",
    "pretrained": True,
    "trainable": "head",
    "dropout": 0.2,
    "epochs": 30,
    "batch_size": 64,
    "lr": 0.003,
    "warmup": 0.05,
    "label_smoothing": 0.05,
    "augment": "flip",
    "patience": 10,
    "views": 2,
}
# All layers go on learning from where ImageNet left them.
PHOTOS_ALL = PHOTOS | {
    "trainable": "all",
    "epochs": 12,
    "batch_size": 32,
    "lr": 5e-4,
    "warmup": 0.1,
    "label_smoothing": 0.1,
    "augment": "crop-flip-color",
    "views": 1,
    "patience": 5,
}
RECIPES = {"small": SMALL, "small-long": SMALL_LONG, "photos": PHOTOS, "photos-all": PHOTOS_ALL}
# What a trial of a search does less: fewer passes over a share of the training pictures.
TRIALS = {
    "small": {"epochs": 4, "train_share": 0.25},
    "small-long": {"epochs": 6, "train_share": 0.25},
    "photos": {"epochs": 3, "train_share": 0.5},
    "photos-all": {"epochs": 3, "train_share": 0.5},
}
# A frozen backbone leaves so little to compute that nothing has to be saved.
FROZEN_TRIAL = {"train_share": 1.0}


def complete(args: argparse.Namespace, small_pictures: bool) -> None:
    """Fill in what the command line left open, from --recipe or the one that suits the data."""
    if args.recipe is None:
        args.recipe = "small" if small_pictures else "photos"
    recipe = dict(RECIPES[args.recipe])
    if args.model in SMALL_RESNETS:
        # There are no pretrained weights of these.
        recipe |= {"pretrained": False, "trainable": "all"}
    if "train_share" in args:
        is_frozen = (args.trainable or recipe["trainable"]) == "head"
        recipe |= FROZEN_TRIAL if is_frozen else TRIALS[args.recipe]
    for name, value in recipe.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def table() -> str:
    """Return the recipes as a table for --help: a row a hyperparameter, a column a recipe."""
    rows = [("", *RECIPES)]
    rows += [
        (name.replace("_", "-"), *(_text(r[name]) for r in RECIPES.values())) for name in SMALL
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths)).rstrip() for row in rows]
    return "\n".join(lines)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value == () else str(value)
