"""What to change for one's own pictures: every answer is measured on the pictures of the run."""

import io

import numpy as np
import pandas as pd
from PIL import Image, ImageEnhance, ImageOps

from studio.explore import imbalance

# A frozen backbone that has seen ImageNet at 224 pixels gains nothing from more, and its answers
# to squares of fewer than 96 are poor.
SIZES = (96, 224)
STEP = 32  # Each stage of the usual networks halves the side, five times in all.
# From here on a class is so rare that plain training neglects it.
IMBALANCED = 3
# With fewer pictures, in all splits together, a class is tested on two or three.
FEW = 20
# What may or may not leave a picture's meaning as it is.
CHANGES = {
    "mirrored": ImageOps.mirror,
    "upside down": ImageOps.flip,
    "a quarter turn": lambda picture: picture.transpose(Image.Transpose.ROTATE_90),
    "half as bright": lambda picture: ImageEnhance.Brightness(picture).enhance(0.5),
    "in grey": lambda picture: ImageOps.grayscale(picture).convert("RGB"),
}
SIGNIFICANT = 0.05
# What to do where other pictures give another answer, by question.
REMEDIES = {
    "classes of unequal size": (
        "Look at the recall of each class, not at the accuracy alone. Collect more of the rare "
        "one; --balance weights or sampler comes second."
    ),
    "size of the pictures": (
        "Where what tells classes apart is small or at the edge, cut it out beforehand. "
        "--image-size goes up to 1024, at a cost that grows with its square."
    ),
    "size of the test": "Before two models are compared: could the test tell them apart?",
    "number of pictures": (
        "Where the curve still rises, collect more. Where it is flat, look at the mistakes: labels "
        "first, then --recipe photos-all, in which all layers learn."
    ),
    "mirrored pictures": "Letters, digits, arrows, left and right hands: --augment none.",
    "other changes": (
        "Pictures from above have no up: --augment flip,vflip with --recipe photos-all. Where "
        "colour is the answer, no color in --augment."
    ),
    "the weakest class": "Two classes that people confuse, too, may be one.",
}


# --- Classes and sizes --------------------------------------------------------------------------


def balance(counts):
    """The value of --balance that suits these pictures of each class and split."""
    return "weights" if imbalance(counts) >= IMBALANCED else "none"


def about_classes(counts):
    """How unequal the classes are, in sentences."""
    weighed = {"weights": "so the loss weighs rare ones more", "none": "so none needs care"}
    share = counts["valid"].max() / counts["valid"].sum()
    total = counts.sum(axis=1)
    few = [f"“{name}” ({count})" for name, count in total.items() if count < FEW]
    warning = f" ⚠️ Too few pictures to judge: {', '.join(few)}." if few else ""
    return (
        f"The largest class has {imbalance(counts):.1f} times the pictures of the smallest, "
        f"“{total.idxmin()}” with {total.min()}, {weighed[balance(counts)]}. Always naming "
        f"“{counts['valid'].idxmax()}” would be right for {share:.0%} of the validation pictures."
        f"{warning}"
    )


def short_side(survey):
    """The median shorter side of the pictures, in pixels."""
    return int(survey.pictures[["width", "height"]].min(axis=1).median())


def image_size(survey):
    """The side of the squares that suits these pictures: not more pixels than they have."""
    low, high = SIZES
    return min(max(short_side(survey) // STEP * STEP, low), high)


def about_size(survey):
    """What the network sees of the pictures, in a sentence."""
    sides = survey.pictures[["width", "height"]]
    kept = (sides.min(axis=1) / sides.max(axis=1)).mean()
    size = image_size(survey)
    return (
        f"Their shorter side has {short_side(survey)} pixels (median); the network sees "
        f"{size}×{size}, the central square, which keeps {kept:.0%} of a picture on average."
    )


# --- Changed pictures ---------------------------------------------------------------------------


def upright(path):
    """The picture in a file, turned as its camera says, in RGB."""
    with Image.open(path) as picture:
        return ImageOps.exif_transpose(picture).convert("RGB")


def ask_changed(ask, pictures):
    """How answers fare when pictures are changed: a DataFrame, one row a change.

    Args:
        ask: function from the bytes of a picture to the endpoint's answer.
        pictures: (path, true class) pairs.

    Columns: pictures, kept (share of the answers that stay the same), accuracy before and after,
    and p_value: how likely chance alone makes such a difference (exact McNemar test).
    """
    from vision.metrics import mcnemar  # Here, because it loads torch.

    pixels = [upright(path) for path, _ in pictures]
    truth = np.array([name for _, name in pictures])
    before = np.array([_best_class(ask(_png(picture))) for picture in pixels])
    rows = {}
    for name, change in CHANGES.items():
        after = np.array([_best_class(ask(_png(change(picture)))) for picture in pixels])
        rows[name] = {
            "pictures": len(pictures),
            "kept": (before == after).mean(),
            "accuracy": (before == truth).mean(),
            "accuracy_changed": (after == truth).mean(),
            "p_value": mcnemar(before == truth, after == truth)["p_value"],
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("change")


def _best_class(answer):
    # The endpoint names none where it is not sure enough.
    return max(answer["scores"], key=answer["scores"].get)


def _png(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def harmful(changed):
    """Names of the changes that cost accuracy, beyond what chance does."""
    worse = changed["accuracy_changed"] < changed["accuracy"]
    return list(changed.index[worse & (changed["p_value"] < SIGNIFICANT)])


def about_mirror(changed, with_mirror, without):
    """Whether --augment flip suits these pictures, in sentences.

    Args:
        changed: from `ask_changed`.
        with_mirror, without: validation accuracies of trainings that differ in it alone.
    """
    row = changed.loc["mirrored"]
    verdict = "mirror images do no harm"
    if "mirrored" in harmful(changed) or with_mirror.max() < without.min():
        verdict = "left and right matter: train with --augment none"
    elif with_mirror.min() > without.max():
        verdict = "mirror images help"
    return (
        f"{row['kept']:.0%} of {row['pictures']:.0f} answers stay the same. Trained with mirror "
        f"images {with_mirror.mean():.1%} of the validation pictures are right, without "
        f"{without.mean():.1%}: {verdict}."
    )


def about_changes(changed):
    """Which of the other changes cost accuracy, in a sentence."""
    names = [name for name in harmful(changed) if name != "mirrored"]
    return f"Accuracy is lost, beyond chance, by: {', '.join(names) or 'none of them'}."


# --- The test -----------------------------------------------------------------------------------


def about_test(evaluation, margin=0.02):
    """How much the size of the test leaves open, in sentences.

    How many pictures a margin takes is the normal approximation of the binomial distribution,
    1.96² · a · (1 - a) / margin², at the end of the interval where it takes more.
    """
    low, high = evaluation["accuracy_interval_95"]
    spread = max(a * (1 - a) for a in (low, high))
    enough = int(np.ceil(1.96**2 * spread / margin**2))
    return (
        f"{evaluation['n']} pictures leave {low:.1%} to {high:.1%} open. To know it to within "
        f"{100 * margin:.0f} points may take {enough:,}."
    )


def about_weakest(evaluation, counts):
    """The class that is recognised worst, by its F1, in a sentence."""
    classes = evaluation.classes()
    name = classes["f1"].idxmin()
    weakest = classes.loc[name]
    return (
        f"“{name}”: of its {weakest['support']:.0f} test pictures {weakest['recall']:.0%} are "
        f"found, and {weakest['precision']:.0%} of the answers that name it are right; it had "
        f"{counts.loc[name, 'train']} to learn from."
    )


def table(lessons):
    """What was measured, and what to change where other pictures say else: a DataFrame.

    Args:
        lessons: sentence by question; the questions are those of REMEDIES.
    """
    rows = {
        what: {"these pictures": said, "with others": REMEDIES[what]}
        for what, said in lessons.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("question")
