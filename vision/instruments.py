"""What can look on while a training runs, debugger and profiler, each loaded only if asked for."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision.training import Trainer

# Where SageMaker writes what a job's debugger is to save; smdebug knows the same two.
SERVICE_CONFIGURATION = "/opt/ml/input/config/debughookconfig.json"
CONFIGURATION_VARIABLE = "SMDEBUG_CONFIG_FILE_PATH"


class NoDebugger:
    """A debugger that sees nothing; the methods of `vision.debugging.Debugger`."""

    def begin(self, step, epoch): ...

    def end(self, lr, right): ...

    def validated(self, step, epoch, logits, labels, metrics): ...


class NoProfiler:
    """A profiler that measures nothing; the methods of `vision.profiling.Profiler`."""

    def phase(self, name):
        return contextlib.nullcontext()

    def step(self, epoch, pictures): ...


@contextlib.contextmanager
def watching(trainer: "Trainer", folder: Path, facts: dict[str, Any]) -> Iterator[None]:
    """Give a training the debugger and profiler that its arguments ask for, as long as this lasts.

    They write below `folder`: the debugger to tensors/, the profiler to profile/, and the main
    process what both are about to run.json: `facts` and what the trainer knows. What lacks its
    library says so in one sentence, and the training does without it. Raises ExpectedError for
    a debughookconfig.json that is none.
    """
    args, configuration = trainer.args, _service_configuration()
    debug = configuration is not None if args.debug is None else args.debug
    if not debug and not args.profile:
        yield
        return
    started = _process_start()
    with contextlib.ExitStack() as stack:
        if trainer.group.is_main:
            _write_run(trainer, folder, {**facts, "started": started})
        if args.profile:
            with _doing_without("--profile", trainer):
                from vision.profiling import Profiler

                profiler = Profiler(
                    folder / "profile",
                    trainer.group.rank,
                    args.profile_interval,
                    args.batch_size,
                    trainer.workers,
                    started,
                    trainer.device,
                )
                trainer.profiler = stack.enter_context(profiler)
        if debug and trainer.group.is_main:
            with _doing_without("--debug", trainer):
                # Its lines about files and collections are not for the job's log.
                os.environ.setdefault("SMDEBUG_LOG_LEVEL", "warning")
                from vision.debugging import Debugger

                debugger = Debugger(trainer, folder / "tensors", configuration)
                trainer.debugger = stack.enter_context(debugger)
        yield


@contextlib.contextmanager
def _doing_without(flag: str, trainer: "Trainer") -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        trainer.group.say(f"{flag} does nothing here, the training goes on without it: {error}")


def _service_configuration() -> Path | None:
    path = Path(os.environ.get(CONFIGURATION_VARIABLE, SERVICE_CONFIGURATION))
    return path if path.is_file() else None


def _process_start() -> float:
    """Return when this process began, in unix seconds; without psutil, now."""
    try:
        import psutil
    except ImportError:
        return time.time()
    return psutil.Process().create_time()


def _write_run(trainer: "Trainer", folder: Path, facts: dict[str, Any]) -> None:
    run = {
        **facts,
        "model": trainer.args.model,
        "train_pictures": len(trainer.train),
        "valid_pictures": len(trainer.valid),
        "processes": trainer.group.size,
        "device": trainer.device.type,
        "batch_size": trainer.args.batch_size,
    }
    partial = folder / ".run.json"
    partial.write_text(json.dumps(run, indent=1), encoding="utf-8")
    partial.replace(folder / "run.json")
