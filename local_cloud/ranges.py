"""The ranges of tuned hyperparameters: checked, put on their scale, written as text.

https://docs.aws.amazon.com/sagemaker/latest/dg/automatic-model-tuning-define-ranges.html
"""

import math
from collections import Counter
from dataclasses import dataclass

from local_cloud.errors import invalid

MAX_RANGES = 30  # The service's own limit, over all kinds together.
MAX_INTEGER = 2**53  # Beyond it floating-point numbers, with which is searched, skip integers.
# The distributions are imported where they are needed: `tuning_job.make_lane` says why.
# "Linear [is for ranges] within one order of magnitude", says the guide: `Auto` takes it literally.
WIDE = 10


@dataclass(frozen=True)
class Continuous:
    """Real numbers from `low` to `high`, both included."""

    name: str
    low: float
    high: float
    scale: str

    size = math.inf

    @property
    def distribution(self):
        """What is searched: the value itself or, on the reverse logarithmic scale, 1 - value."""
        from optuna.distributions import FloatDistribution

        if self.scale == "ReverseLogarithmic":
            return FloatDistribution(1 - self.high, 1 - self.low, log=True)
        return FloatDistribution(self.low, self.high, log=self.scale == "Logarithmic")

    def text(self, searched):
        value = 1 - searched if self.scale == "ReverseLogarithmic" else searched
        return repr(min(max(value, self.low), self.high))

    def searched(self, text):
        """The number that stands for `text` in the search; None where it is out of range."""
        value = number_or_none(float, text)
        if value is None or not self.low <= value <= self.high:
            return None
        if self.scale != "ReverseLogarithmic":
            return value
        return min(max(1 - value, 1 - self.high), 1 - self.low)


@dataclass(frozen=True)
class Integer:
    """Whole numbers from `low` to `high`, both included."""

    name: str
    low: int
    high: int
    scale: str

    @property
    def size(self):
        return self.high - self.low + 1

    @property
    def distribution(self):
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high, log=self.scale == "Logarithmic")

    def values(self):
        return range(self.low, self.high + 1)

    def text(self, searched):
        return str(int(searched))

    def searched(self, text):
        value = number_or_none(int, text)
        return value if value is not None and self.low <= value <= self.high else None


@dataclass(frozen=True)
class Categorical:
    """One of several texts."""

    name: str
    choices: tuple

    @property
    def size(self):
        return len(self.choices)

    @property
    def distribution(self):
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.choices)

    def values(self):
        return self.choices

    def text(self, searched):
        return searched

    def searched(self, text):
        return text if text in self.choices else None


def combinations(ranges):
    """How many different proposals there are; infinite with a continuous range."""
    sizes = [each.size for each in ranges]
    return math.inf if math.inf in sizes else math.prod(sizes)


def read_ranges(request):
    """The ranges of a request's `ParameterRanges`.

    Raises:
        ServiceError: a range breaks a rule of the service, or there are too many.
    """
    found = [
        *(read_continuous(entry) for entry in request.get("ContinuousParameterRanges", [])),
        *(read_integer(entry) for entry in request.get("IntegerParameterRanges", [])),
        *(read_categorical(entry) for entry in request.get("CategoricalParameterRanges", [])),
    ]
    if len(found) > MAX_RANGES:
        raise invalid(f"{len(found)} hyperparameters are to be tuned; at most {MAX_RANGES} can be.")
    doubled = [name for name, count in Counter(each.name for each in found).items() if count > 1]
    if doubled:
        raise invalid(f"The hyperparameter {doubled[0]!r} has more than one range.")
    return found


def read_continuous(entry):
    low, high = limits(entry, float)
    if not math.isfinite(high - low):
        raise invalid(f"The range of {entry['Name']!r} is not finite.")
    scale = scale_of(entry, low, high)
    if scale == "ReverseLogarithmic" and not 0 <= low <= high < 1:
        raise invalid(
            f"The reverse logarithmic range of {entry['Name']!r} must lie within 0 <= x < 1."
        )
    return Continuous(entry["Name"], low, high, scale)


def read_integer(entry):
    low, high = limits(entry, int)
    if not -MAX_INTEGER <= low <= high <= MAX_INTEGER:
        raise invalid(f"The range of {entry['Name']!r} goes beyond {MAX_INTEGER}.")
    scale = scale_of(entry, low, high)
    if scale == "ReverseLogarithmic":
        raise invalid(
            f"{entry['Name']!r} is an integer; ReverseLogarithmic is for continuous ranges only."
        )
    return Integer(entry["Name"], low, high, scale)


def read_categorical(entry):
    values = tuple(entry["Values"])
    if len(set(values)) < len(values):
        raise invalid(f"A value of {entry['Name']!r} is listed twice.")
    return Categorical(entry["Name"], values)


def limits(entry, number):
    """`MinValue` and `MaxValue` of a range as numbers."""
    low, high = (number_or_none(number, entry[key]) for key in ("MinValue", "MaxValue"))
    if low is None or high is None:
        word = "an integer" if number is int else "numeric"
        raise invalid(f"The range of {entry['Name']!r} is not {word}.")
    if low >= high:
        raise invalid(
            f"The MinValue of {entry['Name']!r} must be less than its MaxValue; "
            "a hyperparameter with one value is a static one."
        )
    return low, high


def number_or_none(number, text):
    """`text` as a finite number of the type `number`; None where it is not one."""
    try:
        value = number(text)
    except ValueError:
        return None
    # Python reads "1_000"; the service does not.
    return value if "_" not in text and math.isfinite(value) else None


def scale_of(entry, low, high):
    """The scale that a numeric range is searched on, never `Auto`."""
    scale = entry.get("ScalingType", "Auto")
    if scale == "Auto":
        return "Logarithmic" if low > 0 and high / low > WIDE else "Linear"
    if scale == "Logarithmic" and low <= 0:
        raise invalid(f"The logarithmic range of {entry['Name']!r} must begin above 0.")
    return scale
