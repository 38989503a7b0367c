"""The learning curve of a data set: what learning_curve.py wrote, and what it says of more data."""

import io
import math

import numpy as np
import pandas as pd

from studio.jobs import output_uri, read_from_archive

LEAST = 0.0005  # Of accuracy: what is less reads as 0.0 points.


def load_curve(cloud, job):
    """The table that a job with learning_curve.py wrote: share, seed, pictures, valid_accuracy."""
    uri = f"{output_uri(job)}/output.tar.gz"
    return pd.read_csv(io.BytesIO(read_from_archive(cloud, uri, "learning_curve.csv")))


def summary(curve):
    """By number of pictures: mean, lowest and highest accuracy, and how many trainings."""
    accuracy = curve.groupby("pictures")["valid_accuracy"]
    return accuracy.agg(mean="mean", lowest="min", highest="max", trainings="count")


def forecast(curve, pictures):
    """The accuracy to expect of so many pictures, by the power law that fits the measured errors.

    Errors fall as a power of the number of examples over a wide range (Hestness et al. 2017,
    arXiv:1712.00409); the law is fitted as a line to the logarithms of both. Where no error is
    left, or it does not fall, that is the accuracy of all pictures.
    """
    means = summary(curve)["mean"]
    errors = 1 - means[means < 1]
    if len(errors) < 2:
        return float(means.iloc[-1])
    slope, start = np.polyfit(np.log(errors.index.to_numpy(float)), np.log(errors), 1)
    if slope >= 0:
        return float(means.iloc[-1])
    return float(1 - math.exp(start + slope * math.log(pictures)))


def gain(curve):
    """What twice the pictures bring by that law (a fraction); None where it foretells nothing.

    It foretells nothing where its forecast for twice the pictures is reached already.
    """
    means = summary(curve)["mean"]
    most, reached = means.index[-1], means.iloc[-1]
    ahead = forecast(curve, 2 * most)
    if ahead <= reached + LEAST:
        return None
    return ahead - forecast(curve, most)


def sentence(curve):
    """What the curve says, as Markdown: all pictures, fewer of them, and twice as many."""
    means = summary(curve)["mean"]
    most, reached = means.index[-1], means.iloc[-1]
    half = nearest_half(means)
    fewer = [f"on {n:,} of them {means[n]:.1%}" for n in sorted({half, means.index[0]} - {most})]
    said = [
        f"Trained on all {most:,} pictures, the network gets **{reached:.1%}** of the validation "
        "pictures right"
    ]
    said = f"{', '.join([*said, *fewer[::-1]])}. "
    if reached == 1:
        return f"{said}No error is left that more pictures could mend."
    more = gain(curve)
    if more is None:
        foretold = "The errors follow no power law here, so there is no forecast"
    else:
        worth = "more pictures would pay" if more >= 0.01 else "pictures are not what it lacks"
        foretold = (
            f"If the error goes on falling as it did, twice as many bring {100 * more:.1f} points "
            f"more, so {worth}"
        )
    return f"{said}{foretold}{last_step(means)}."


def nearest_half(means):
    """The number of pictures that is nearest to half of all."""
    return means.index[np.abs(means.index - means.index[-1] / 2).argmin()]


def last_step(means):
    """What the last doubling brought, as the end of a sentence; nothing where only all are there.

    Where no training had about half of the pictures, it is the step from the nearest number.
    """
    most, half = means.index[-1], nearest_half(means)
    if half == most:
        return ""
    doubled = abs(most / half - 2) < 0.1
    step = "the last doubling" if doubled else f"the step from {half:,} pictures to all"
    points = round(100 * (means[most] - means[half]), 1) + 0.0  # Without the sign of a -0.0.
    return f"; {step} brought {points:+.1f} points"
