"""The JSONPath expressions of a transform job's data processing.

The operators are those that the service supports (Amazon SageMaker Developer Guide, "Associate
Prediction Results with Input Records"): `$`, `.name`, `*`, `['name', ...]`, `[0, ...]`, `[1:3]`.
"""

import re

NAME = r"[^\W\d][\w-]*"
STEP = re.compile(
    rf"\.(?P<name>{NAME})"
    r"|(?P<all>\.\*|\[\*\])"
    r"|\[(?P<names>\s*'[^']*'\s*(?:,\s*'[^']*'\s*)*)\]"
    r"|\[(?P<start>\s*-?\d*\s*):(?P<stop>\s*-?\d*\s*)\]"
    r"|\[(?P<indexes>\s*-?\d+\s*(?:,\s*-?\d+\s*)*)\]"
)


class PathError(ValueError):
    """The expression is not one of these, or does not fit the record."""


def compile_path(expression):
    """A function that selects a part of a JSON value.

    Several names select an object with these members, several indexes and slices a list.

    Raises:
        PathError: the expression has operators that the service does not support.
    """
    if not expression.startswith("$"):
        raise PathError(f"{expression!r} does not begin with $.")
    steps, position = [], 1
    while position < len(expression):
        match = STEP.match(expression, position)
        if match is None:
            raise PathError(f"{expression!r} is not understood from character {position + 1} on.")
        steps.append(make_step(match))
        position = match.end()

    def path(value):
        try:
            return select(value, steps)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise PathError(f"{expression!r} does not fit the record: {error!r}") from error

    return path


def make_step(match):
    """One operator as a pair (function, whether the rest applies to every item)."""
    if match["name"]:
        return (lambda value: value[match["name"]]), False
    if match["all"]:
        return (lambda value: list(value.values()) if isinstance(value, dict) else value[:]), True
    if match["names"]:
        names = re.findall(r"'([^']*)'", match["names"])
        if len(names) == 1:
            return (lambda value: value[names[0]]), False
        return (lambda value: {name: value[name] for name in names}), False
    if match["indexes"]:
        indexes = [int(index) for index in match["indexes"].split(",")]
        if len(indexes) == 1:
            return (lambda value: value[indexes[0]]), False
        return (lambda value: [value[index] for index in indexes]), False
    bounds = [int(text) if text.strip() else None for text in match.group("start", "stop")]
    return (lambda value: value[slice(*bounds)]), False


def select(value, steps):
    for position, (step, is_each) in enumerate(steps, 1):
        value = step(value)
        if is_each:
            return [select(item, steps[position:]) for item in value]
    return value
