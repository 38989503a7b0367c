"""The command line that training and search share."""

import argparse
import os
from pathlib import Path

from vision import recipes
from vision.augment import AUGMENTATIONS
from vision.classifier import ANSWER_VIEWS
from vision.cli import ArgumentParser, add_switch, ranged
from vision.models import MODEL_NAMES, parse_trainable
from vision.schedules import SCHEDULES

# Where SageMaker keeps a job's checkpoints in step with S3, if the job asked for that.
CHECKPOINTS = "/opt/ml/checkpoints"
OPTIMIZERS = ("sgd", "adamw")
BALANCES = ("none", "weights", "sampler")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


def add_arguments(parser: ArgumentParser) -> argparse._ArgumentGroup:
    """Add the folders and hyperparameters that training and search share; return the latter."""
    _add_data(parser)
    recipe = parser.add_argument_group("hyperparameters, from the recipe unless given")
    recipe.add_argument(
        "--recipe",
        choices=tuple(recipes.RECIPES),
        help="the hyperparameters that are not given (table below); otherwise small for pictures "
        "up to 32 pixels and photos for larger ones",
    )
    _add_model(recipe)
    _add_optimisation(recipe)
    _add_pictures(recipe)
    _add_limits(parser.add_argument_group("machine and time"))
    parser.epilog += "\n\nRecipes:\n\n" + recipes.table()
    return recipe


def _add_data(parser: ArgumentParser) -> None:
    data = parser.add_argument_group("data: class folders, .tar files of them, or RecordIO files")
    data.add_argument(
        "--train",
        default=os.environ.get("SM_CHANNEL_TRAIN", "data/train"),
        help="pictures to learn from ($SM_CHANNEL_TRAIN)",
    )
    data.add_argument(
        "--valid",
        default=os.environ.get("SM_CHANNEL_VALID", "data/valid"),
        help="pictures to choose by: epoch, temperature ($SM_CHANNEL_VALID)",
    )
    data.add_argument(
        "--features",
        default=os.environ.get("SM_CHANNEL_FEATURES"),
        help="what extract_features.py or an earlier run computed ($SM_CHANNEL_FEATURES)",
    )


def _add_model(recipe: argparse._ArgumentGroup) -> None:
    recipe.add_argument("--model", choices=MODEL_NAMES, help="architecture")
    add_switch(recipe, "--pretrained", None, "begin with weights learned on ImageNet")
    recipe.add_argument(
        "--trainable",
        type=parse_trainable,
        help="head, all or last-N-stages: what training changes",
    )
    recipe.add_argument(
        "--head-hidden",
        type=_sizes,
        help='sizes of hidden layers of the head, "256" or "512,128" or "none"',
    )
    recipe.add_argument("--dropout", type=ranged(float, 0, 0.95), help="share dropped in the head")


def _add_optimisation(recipe: argparse._ArgumentGroup) -> None:
    recipe.add_argument("--epochs", type=ranged(int, 1), help="passes over the training pictures")
    recipe.add_argument("--batch-size", type=ranged(int, 2), help="pictures of one step, at most")
    recipe.add_argument(
        "--optimizer", choices=OPTIMIZERS, help="sgd has a Nesterov momentum of 0.9"
    )
    recipe.add_argument(
        "--lr",
        type=ranged(float, 0),
        help="peak learning rate; vgg16, which has no batch norm, wants 0.01 with sgd",
    )
    recipe.add_argument("--schedule", choices=SCHEDULES, help="of the learning rate, by steps")
    recipe.add_argument(
        "--warmup", type=ranged(float, 0, 1), help="share of all steps that lead up to the peak"
    )
    recipe.add_argument(
        "--gamma",
        type=ranged(float, 0.01, 1),
        help="factor of the exponential schedule's learning rate for every epoch",
    )
    recipe.add_argument(
        "--weight-decay",
        type=ranged(float, 0),
        help="pull of the weights towards zero; biases and batch-norm scales have none",
    )
    recipe.add_argument(
        "--label-smoothing",
        type=ranged(float, 0, 0.99),
        help="share of the target spread over all classes; train_loss contains it",
    )
    recipe.add_argument(
        "--ordinal",
        type=ranged(float, 0, 100),
        help="for classes that are numbers: neighbours share in the target, as a normal "
        "distribution around it with this standard deviation says; 0 for none",
    )
    recipe.add_argument(
        "--clip-norm", type=ranged(float, 0), help="largest norm of the gradient; 0 for any"
    )
    recipe.add_argument(
        "--ema",
        type=ranged(float, 0, 0.99999),
        help="validate and keep a moving average of the weights with this decay; 0 for none",
    )
    recipe.add_argument(
        "--patience",
        type=ranged(int, 0),
        help="stop after so many epochs without a better validation accuracy; 0 never does",
    )


def _add_pictures(recipe: argparse._ArgumentGroup) -> None:
    recipe.add_argument(
        "--augment",
        help=f"random changes of training pictures: none, or some of {', '.join(AUGMENTATIONS)} "
        "joined by commas or hyphens; flip only where left and right do not matter, vflip where "
        "up and down do not, as in pictures from above",
    )
    recipe.add_argument(
        "--mixup", type=ranged(float, 0), help="alpha of mixup, usually 0.2; 0 for none"
    )
    recipe.add_argument(
        "--balance",
        choices=BALANCES,
        help="for classes of unequal size: weights in the loss, or a sampler that draws every "
        "class equally often",
    )
    recipe.add_argument(
        "--views",
        type=ranged(int, 1, 8),
        help="fixed changes of each picture that a frozen backbone sees: itself, its mirror "
        "image, then crops; only itself where --augment has no flip",
    )
    add_switch(
        recipe,
        "--cache-features",
        True,
        "with --trainable head: what the frozen backbone makes of each picture is computed once; "
        "false sends the pictures through it in every epoch, each time changed anew",
    )
    recipe.add_argument(
        "--answer-views",
        type=int,
        choices=ANSWER_VIEWS,
        help="an answer is the mean of what the network says to the picture, to its mirror image "
        "(2), and to both upside down (4); takes as many times as long",
    )
    recipe.add_argument(
        "--image-size",
        type=ranged(int, 8, 1024),
        help="side in pixels; otherwise the data's own up to 32, and 224 for larger pictures",
    )
    recipe.add_argument(
        "--seed", type=ranged(int, 0), default=0, help="of weights, order and augmentation"
    )


def _add_limits(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-seconds",
        type=ranged(float, 1),
        help="end the training after so many seconds, with a saved model; otherwise never",
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="of training, and of the features that it learns from where it computes them itself; "
        "auto takes bfloat16 where the hardware computes with it, else float32",
    )
    group.add_argument(
        "--workers",
        type=ranged(int, 0, 64),
        help="processes that prepare batches ahead; otherwise one a core where a GPU computes, "
        "and none where the cores do",
    )
    group.add_argument(
        "--checkpoint-dir",
        default=CHECKPOINTS if Path(CHECKPOINTS).is_dir() else None,
        help=f"where to save the state and look for one to go on from; otherwise {CHECKPOINTS} "
        "if it is there, else none",
    )
    group.add_argument(
        "--checkpoint-seconds",
        type=ranged(float, 0),
        default=60.0,
        help="longest time between two checkpoints; each epoch ends with one, too",
    )


def add_watching(parser: ArgumentParser) -> None:
    """Add what decides what a training lets be seen of itself."""
    group = parser.add_argument_group("debugger and profiler: both write below --output-data-dir")
    add_switch(
        group,
        "--debug",
        None,
        "save tensors for the debugger's rules, with smdebug; otherwise only where the service "
        "wrote debughookconfig.json, which says what and where",
    )
    group.add_argument(
        "--debug-interval",
        type=ranged(int, 1),
        help="steps from one that is saved to the next; otherwise 50, and in trainings of more "
        "than 1250 steps a 25th part of them",
    )
    add_switch(group, "--profile", False, "measure the machine and the parts of every step")
    group.add_argument(
        "--profile-interval",
        type=ranged(float, 0.05, 60),
        default=0.5,
        help="seconds from one look at the machine to the next",
    )


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(int(part) for part in text.split(",")) if text not in ("none", "") else ()
    if any(not 1 <= size <= 8192 for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not sizes from 1 to 8192 joined by commas")
    return sizes


_sizes.__name__ = "sizes"
