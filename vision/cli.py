"""The command line of every entry point: help that helps, and errors of one sentence."""

import argparse
import contextlib
import difflib
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vision.errors import ExpectedError
from vision.memory import keep_memory


class ArgumentParser(argparse.ArgumentParser):
    """argparse, with the module's docstring as help and one sentence for a wrong argument."""

    def __init__(self, doc: str):
        summary, _, rest = doc.strip().partition("\n")
        super().__init__(
            description=summary,
            epilog=rest.strip(),
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse; an unknown name ends the program with code 2 and the nearest known name."""
        args, unknown = self.parse_known_args(argv)
        if unknown:
            name = unknown[0].split("=")[0]
            known = [s for action in self._actions for s in action.option_strings]
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            self.error(f"unknown argument {name}: did you mean {nearest[0]}? (--help lists all)")
        return args

    def error(self, message: str):
        _report(f"{self.prog}: {message}")
        sys.exit(2)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        # "(default: None)" helps nobody: such a help text says itself what happens without it.
        return action.help if action.default is None else super()._get_help_string(action)


def add_switch(parser: argparse._ActionsContainer, flag: str, default: bool | None, what: str):
    """Add a flag that as a SageMaker hyperparameter comes with a value, by hand without."""
    parser.add_argument(
        flag,
        nargs="?",
        type=_true_or_false,
        const=True,
        default=default,
        metavar="true|false",
        help=what,
    )


def add_dry_run(parser: ArgumentParser, what: str) -> None:
    """Add --dry-run."""
    add_switch(parser, "--dry-run", False, what)


def _true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def ranged(kind: type, low: float, high: float = float("inf")) -> Callable[[str], float]:
    """Return an argparse type: a number of `kind` within [low, high]."""

    def parse(text: str):
        value = kind(text)
        if abs(value) == float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a finite number")
        if not low <= value <= high:
            limits = f"at least {low}" if high == float("inf") else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"{text} is not {limits}")
        return value

    parse.__name__ = kind.__name__
    return parse


def run(main: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """Call `main(args)` and return the exit code; an expected fault becomes one sentence.

    The sentence is the last line of stderr and, in a SageMaker job, the reason of the failure
    ($SM_OUTPUT_DIR/failure). Anything unexpected keeps its traceback.
    """
    keep_memory()
    try:
        return main(args) or 0
    except ExpectedError as error:
        _report(f"error: {error}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" ({error.filename})" if error.filename else ""
        _report(f"error: the disk is full{where}: free some space and run it again")
    return 1


def _report(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
    folder = os.environ.get("SM_OUTPUT_DIR")
    if folder and Path(folder).is_dir():
        # The sentence is on stderr already; a full disk must not hide it.
        with contextlib.suppress(OSError):
            Path(folder, "failure").write_text(sentence + "\n", encoding="utf-8")
