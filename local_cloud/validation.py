"""Checks a value against a shape of botocore's service description, as the service itself does.

botocore checks a request before it is sent, but only types, required members and lower bounds: a
raw client, or a newer SDK with another description, is not checked at all. The wording of the
answers is the service's own, so that code that reads them works here, too.
"""

import datetime
import functools
import math

import regex  # The service's patterns are Java's: \p{L} and the like are unknown to `re`.

# Java writes the characters above U+FFFF as pairs of surrogates; Python as one character.
JAVA_ASTRAL = ("\\uD800\\uDC00-\\uDBFF\\uDFFF", "\\U00010000-\\U0010FFFF")
LATEST = 253402300799.0  # Seconds since 1970 until the end of the year 9999.
MAX_SHOWN = 200  # Characters of an offending value that are repeated in the message.
NUMBERS = {
    "integer": (-(2**31), 2**31 - 1),
    "long": (-(2**63), 2**63 - 1),
}


class WrongType(Exception):
    """A value of a type that cannot be read as the shape's."""


def parsed(value, shape):
    """`value` without what the shape does not have: unknown members and nulls.

    The service ignores members that it does not know and takes null for absent.

    Raises:
        WrongType: with a sentence that says where.
    """
    return read(value, shape, "")


def read(value, shape, path):
    kind = shape.type_name
    if kind == "structure":
        require_type(value, dict, path, "a structure")
        return {
            name: read(value[name], member, join(path, name))
            for name, member in shape.members.items()
            if value.get(name) is not None
        }
    if kind == "map":
        require_type(value, dict, path, "a map")
        for key in value:
            require_text(key, path)
        pairs = ((key, item) for key, item in value.items() if item is not None)
        return {key: read(item, shape.value, f"{path}.{key}") for key, item in pairs}
    if kind == "list":
        require_type(value, list, path, "a list")
        return [
            read(item, shape.member, join(path, str(number)))
            for number, item in enumerate(value, start=1)
        ]
    return read_scalar(value, kind, path)


def read_scalar(value, kind, path):
    if kind == "boolean":
        require_type(value, bool, path, "a Boolean")
    elif kind in ("string", "blob"):
        require_text(value, path)
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise WrongType(f"{spell(value)} at '{path}' can not be converted to a number")
    elif kind in NUMBERS:
        low, high = NUMBERS[kind]
        if value != value or value in (math.inf, -math.inf) or int(value) != value:
            raise WrongType(f"{spell(value)} at '{path}' can not be converted to an integer")
        if not low <= value <= high:
            raise WrongType(f"{spell(value)} at '{path}' is out of the range of its type")
        return int(value)
    elif not math.isfinite(as_float(value, path)):
        raise WrongType(f"{spell(value)} at '{path}' is not a finite number")
    elif kind == "timestamp" and not 0 <= value <= LATEST:
        raise WrongType(f"{spell(value)} at '{path}' is not a time in seconds since 1970")
    return value


def as_float(value, path):
    try:
        return float(value)
    except OverflowError:
        raise WrongType(f"the number at '{path}' is too large") from None


def require_type(value, kind, path, words):
    if not isinstance(value, kind):
        raise WrongType(f"{spell(value)} at '{path}' can not be converted to {words}")


def require_text(value, path):
    require_type(value, str, path, "a String")
    try:
        value.encode()
    except UnicodeEncodeError:  # Half a pair of surrogates.
        raise WrongType(f"the text at '{path}' is not valid Unicode") from None


def problems(value, shape):
    """Every constraint of the shape that `value` breaks, as sentences in the service's words.

    Args:
        value: as returned by `parsed`; times may also be datetimes.
        shape: a botocore shape.
    """
    return list(find(value, shape, ""))


def find(value, shape, path):
    kind = shape.type_name
    if kind == "structure":
        yield from find_in_structure(value, shape, path)
        return
    limits = shape.metadata
    if kind == "map":
        yield from out_of_length(len(value), value, limits, path)
        for key, item in value.items():
            yield from find(key, shape.key, path)
            yield from find(item, shape.value, f"{path}.{key}")
    elif kind == "list":
        yield from out_of_length(len(value), value, limits, path)
        for number, item in enumerate(value, start=1):
            yield from find(item, shape.member, join(path, f"{number}.member"))
    elif kind == "string":
        yield from find_in_text(value, shape, path)
    elif not isinstance(value, (bool, datetime.datetime)):
        if "min" in limits and value < limits["min"]:
            yield broken(value, path, f"have value greater than or equal to {limits['min']}")
        if "max" in limits and value > limits["max"]:
            yield broken(value, path, f"have value less than or equal to {limits['max']}")


def find_in_structure(value, shape, path):
    for name in shape.required_members:
        if name not in value:
            yield broken(None, join(path, name), "not be null")
    if getattr(shape, "is_tagged_union", False) and len(value) > 1:
        yield broken(value, path, "set exactly one member")
    for name, item in value.items():
        yield from find(item, shape.members[name], join(path, name))


def find_in_text(value, shape, path):
    yield from out_of_length(len(value), value, shape.metadata, path)
    if shape.enum and value not in shape.enum:
        yield broken(value, path, f"satisfy enum value set: [{', '.join(shape.enum)}]")
    pattern = shape.metadata.get("pattern")
    if pattern and not matches(pattern, value):
        yield broken(value, path, f"satisfy regular expression pattern: {pattern}")


def matches(pattern, text):
    """Whether the whole text has the form; a text that takes a second to decide has not."""
    try:
        return compiled(pattern).fullmatch(text, timeout=1) is not None
    except TimeoutError:
        return False


def out_of_length(length, value, limits, path):
    if "min" in limits and length < limits["min"]:
        yield broken(value, path, f"have length greater than or equal to {limits['min']}")
    if "max" in limits and length > limits["max"]:
        yield broken(value, path, f"have length less than or equal to {limits['max']}")


def broken(value, path, rule):
    shown = "null" if value is None else f"'{spell(value)}'"
    return f"Value {shown} at '{path}' failed to satisfy constraint: Member must {rule}"


def answer_problems(answer, shape):
    """What is wrong with an answer, given as it goes over the wire: empty where all is right."""
    try:
        known = parsed(answer, shape)
    except WrongType as error:
        return [str(error)]
    unknown = [] if known == answer else [f"unknown members or nulls in {spell(answer)}"]
    return unknown + problems(known, shape)


def message(found):
    """The one sentence of a ValidationException."""
    count = f"{len(found)} validation error{'s' if len(found) > 1 else ''} detected"
    return f"{count}: {'; '.join(found)}"


@functools.cache
def compiled(pattern):
    return regex.compile(pattern.replace(*JAVA_ASTRAL))


def join(path, name):
    """The service spells members in camel case: `resourceConfig.instanceType`."""
    name = name[:1].lower() + name[1:]
    return f"{path}.{name}" if path else name


def spell(value):
    text = str(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
