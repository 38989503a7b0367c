"""What the debugger's rules look at: tensors of a training, saved by smdebug's hook.

`smdebug.trials.create_trial(folder)` reads them. Saved are, in TRAIN, steps 0 to 2, then every
--debug-interval-th and the one after it; in EVAL, the validation at the end of each epoch.

As reductions (minimum, maximum, mean, standard deviation, variance, l2 norm; mean and maximum of
the absolute values), TRAIN only:

    weights, biases           Network_<parameter>, before the step
    gradients                 gradient/Network_<parameter>, what the optimiser gets, not yet clipped
    relu_input, relu_output   <module>_input_0, <module>_output_0

As they are, TRAIN only but for the last two collections and half of the scalars:

    samples    sample/<name> of weights, biases and gradients: values at always the same places
    activity   activity/<module>: of each unit (channel or feature) of a ReLU, the share in percent
               of its outputs in this batch that are above 0
    losses     CrossEntropyLoss_output_0: one a picture
    answers    CrossEntropyLoss_input_0, the logits; CrossEntropyLoss_input_1, the labels, or with
               mixup shares of classes
    (none)     scalar/lr, scalar/train_accuracy; EVAL: scalar/valid_loss, scalar/valid_accuracy

Where the head alone is trained, that is the network, and its class is Sequential instead of
Network. Weights that do not learn are left out. <module> is the name of a ReLU, which ends in
"relu"; one that is applied twice, as in torchvision's residual blocks, has also <module>_input_1,
<module>_output_1 and activity/<module>_1. Of several processes the first one writes: losses,
answers and activity are of its part of the batch, gradients of all of it.
"""

import atexit
import functools
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import smdebug.pytorch
import torch
from smdebug.core.access_layer.utils import END_OF_JOB_FILENAME
from smdebug.core.config_constants import CLAIM_FILENAME, DEFAULT_WORKER_NAME
from smdebug.core.locations import TensorLocation
from smdebug.core.modes import ModeKeys
from smdebug.core.reduction_config import ReductionConfig
from smdebug.core.save_config import SaveConfig, SaveConfigMode
from smdebug.core.tfevent.event_file_writer import EventFileWriter
from smdebug.core.tfevent.events_writer import EventsWriter
from smdebug.core.tfevent.index_file_writer import EventWithIndex
from smdebug.core.tfevent.proto.event_pb2 import Event
from smdebug.core.tfevent.proto.summary_pb2 import Summary
from smdebug.core.tfevent.util import make_tensor_proto
from smdebug.core.utils import get_relative_event_file_path
from smdebug.core.writer import FileWriter
from smdebug.exceptions import SMDebugError
from torch import nn

from vision.errors import ExpectedError

if TYPE_CHECKING:
    from vision.training import Trainer

INTERVAL, FIRST_STEPS = 50, 3
# So that a resnet18, with 0.6 MB a step, stays below 40 MB however long it trains.
MOST_INTERVALS = 25
SAMPLE = 1024
RELUS = (nn.ReLU, nn.ReLU6)
REDUCTIONS = ReductionConfig(
    reductions=["min", "max", "mean", "std", "variance"],
    norms=["l2"],
    abs_reductions=["mean", "max"],
)
WHOLE = ReductionConfig(save_raw_tensor=True)
OF_PARAMETERS = "^(?!gradient/|sample/|activity/).*"
# The regular expressions of tensor names, and what is saved of them.
COLLECTIONS = {
    "weights": (OF_PARAMETERS + "weight", REDUCTIONS),
    "biases": (OF_PARAMETERS + "bias", REDUCTIONS),
    "gradients": ("^gradient/", REDUCTIONS),
    "relu_input": (r"^(?!activity/).*relu_input_\d+$", REDUCTIONS),
    "relu_output": (r"^(?!activity/).*relu_output_\d+$", REDUCTIONS),
    "samples": ("^sample/", WHOLE),
    "activity": ("^activity/", WHOLE),
    "losses": ("^CrossEntropyLoss_output_", WHOLE),
    "answers": ("^CrossEntropyLoss_input_", WHOLE),
}
VALIDATED = ("losses", "answers")
# What a trial's folder holds; one with anything else in it is not ours to empty.
OF_A_TRIAL = {"events", "index", "collections", "tensorboard", CLAIM_FILENAME, END_OF_JOB_FILENAME}


class Debugger:
    """Tells smdebug's hook which step of a training this is, and what to save of it.

    Steps of TRAIN are those of the training, so that a resumed one goes on counting; steps of
    EVAL are its epochs, from 0. `configuration` is the service's debughookconfig.json: where it
    names collections or hook parameters, it alone says what is saved; where it names a LocalPath,
    that is the folder. A trial that is in the folder already is removed. A disk that is full
    ends the debugging, not the training.
    """

    def __init__(self, trainer: "Trainer", folder: Path, configuration: Path | None = None):
        self.say, self.profiler = trainer.group.say, trainer.profiler
        self.module, self.begun = trainer.module, False
        steps = trainer.args.epochs * trainer.steps_per_epoch
        interval = trainer.args.debug_interval or max(INTERVAL, steps // MOST_INTERVALS)
        self.hook = _hook(folder, configuration, interval)
        self.hook.say = self.say
        # Validation has no class weights and no label smoothing.
        self.valid_loss = nn.CrossEntropyLoss(reduction="none")
        self.hook.register_module(self.module)
        self.hook.register_loss(trainer.loss)
        self.hook.register_loss(self.valid_loss)

    def __enter__(self) -> "Debugger":
        return self

    def __exit__(self, *error) -> None:
        self.hook.close()

    def begin(self, step: int, epoch: int) -> None:
        """Begin a step of TRAIN; both count over the whole training, steps from 0."""
        if not self.begun and step:
            self.say(
                f"the debugger's tensors begin at step {step}: those of the steps before are in "
                "the output of the attempt that was cut short"
            )
        self.begun = True
        self._begin(ModeKeys.TRAIN, step, step + epoch - 1)

    def end(self, lr: float, right: torch.Tensor) -> None:
        """End a step of TRAIN: gradients are there, weights have not moved.

        `right` (N) says which pictures of the batch got the right answer.
        """
        if self.hook.due:
            with self.profiler.phase("debugging"):
                self.hook.save_gradients(self.module)
                accuracy = right.float().mean().item()
                self.hook.finish({"lr": lr, "train_accuracy": accuracy})

    def validated(
        self,
        step: int,
        epoch: int,
        logits: torch.Tensor,
        labels: torch.Tensor,
        metrics: dict[str, float],
    ) -> None:
        """Save a step of EVAL, after so many of TRAIN: logits (N, classes) and labels (N)."""
        self._begin(ModeKeys.EVAL, epoch - 1, step + epoch - 1)
        if self.hook.due:
            with self.profiler.phase("debugging"):
                self.valid_loss(logits, labels)
                self.hook.finish(metrics)

    def _begin(self, mode: ModeKeys, step: int, step_of_all: int) -> None:
        if self.hook.is_due(mode, step, step_of_all):
            with self.profiler.phase("debugging"):
                self.hook.begin(self.module)


def _hook(folder: Path, configuration: Path | None, interval: int) -> "_Hook":
    wanted = _read(configuration) if configuration else {}
    wanted = {"LocalPath": str(folder), **{k: v for k, v in wanted.items() if v}}
    _remove_trial(Path(wanted["LocalPath"]))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "hook.json")
        path.write_text(json.dumps(wanted), encoding="utf-8")
        try:
            hook = _Hook.create_from_json_file(str(path))
            if not wanted.keys() & {"CollectionConfigurations", "HookParameters"}:
                _save_ours(hook, interval)
            hook._prepare_collections()
        except (SMDebugError, AttributeError, TypeError, ValueError) as error:
            raise ExpectedError(f"{configuration}: the debugger cannot use this: {error}") from None
    return hook


def _read(configuration: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(configuration.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise ExpectedError(f"{configuration} is not a debugger's configuration: {error}") from None


def _remove_trial(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - OF_A_TRIAL:
        raise ExpectedError(
            f"{folder} holds something else than a debugger's tensors: empty it or name another"
        )
    shutil.rmtree(folder)


def _save_ours(hook: "_Hook", interval: int) -> None:
    never = SaveConfigMode(end_step=0)
    for name, (_, reductions) in COLLECTIONS.items():
        modes = {
            **dict.fromkeys(ModeKeys, never),
            ModeKeys.TRAIN: _TwoInARow(interval),
            ModeKeys.EVAL: SaveConfigMode(save_interval=1) if name in VALIDATED else never,
        }
        collection = hook.get_collection(name)
        collection.save_config, collection.reduction_config = SaveConfig(modes), reductions
    hook.include_collections = list(COLLECTIONS)


class _TwoInARow(SaveConfigMode):
    """The first three steps, then every so many and the one after: what a step changed shows."""

    def should_save_step(self, step_num: int) -> bool:
        return step_num < FIRST_STEPS or step_num % self.save_interval < 2


def _until_the_disk_is_full(method: Callable) -> Callable:
    @functools.wraps(method)
    def guarded(hook: "_Hook", *args):
        try:
            if not hook.given_up:
                method(hook, *args)
        except (OSError, SMDebugError) as error:
            hook.give_up(error)

    return guarded


class _Hook(smdebug.pytorch.Hook):
    """smdebug's hook, told what step it is and when that ends instead of guessing from forwards.

    smdebug counts forwards of the module, the validation's too, and writes gradients and scalars
    at the beginning of the next one. It times every module, for a profiler that no longer works.
    """

    def __init__(self, **options):
        super().__init__(**options)
        self.due = self.given_up = False
        self.say = print
        self.save_all_workers = False
        self.places: dict[torch.Size, tuple[torch.Tensor, ...]] = {}
        self.reduced: tuple[str, dict] = ("", {})
        self.events: dict[tuple, Event] = {}
        for name, (regex, _) in COLLECTIONS.items():
            self.get_collection(name).include_regex[:] = [regex]

    def has_default_configuration(self) -> bool:
        """Never: in that case smdebug swallows errors and stops saving."""
        return False

    def register_module(self, module: nn.Module) -> None:
        """Register on all submodules; the tensors of a ReLU have that word in their names."""
        super().register_module(module)
        for name, submodule in module.named_modules():
            if isinstance(submodule, RELUS):
                # One that overwrites its input has done so when `forward_hook` sees it.
                submodule.register_forward_pre_hook(self._save_relu_input)
                if not name.endswith("relu"):
                    submodule._module_name = f"{name}.relu"

    def forward_pre_hook(self, module, inputs) -> None:
        """Begin no step: `begin` does."""

    def fhook(self, module, inputs, outputs) -> None:
        """Profile nothing."""

    def _backward_apply(self, module) -> None:
        """Register no hooks on gradients.

        Those would see the gradients of one process, and in float16 scaled ones.
        """

    def is_due(self, mode: ModeKeys, step: int, step_of_all: int) -> bool:
        """Set the step and return whether anything is to be saved of it."""
        self.set_mode(mode)
        self.mode_steps |= {mode: step, ModeKeys.GLOBAL: step_of_all}
        self.step = step_of_all
        self.due = not self.given_up and bool(self._get_collections_to_save_for_step())
        return self.due

    @_until_the_disk_is_full
    def begin(self, module: nn.Module) -> None:
        """Begin a step that is due: save the parameters."""
        self.written_tensor_name_for_step.clear()
        self._initialize_writers()
        for name, parameter in _learning(module):
            self._save_with_sample(name, parameter.data)

    @_until_the_disk_is_full
    def forward_hook(self, module, inputs, outputs) -> None:
        """Save what went into a module and what came out."""
        if not self.due:
            return
        name = module._module_name
        if isinstance(module, RELUS):
            earlier = self.written_tensor_name_for_step.get(f"{name}_output_", 0)
            number = f"_{earlier}" if earlier else ""
            self._save(f"activity/{name}{number}", lambda: _activity(outputs))
        else:
            self._write_inputs(name, inputs)
        self._write_outputs(name, outputs)

    @_until_the_disk_is_full
    def _save_relu_input(self, module, inputs) -> None:
        if self.due:
            self._write_inputs(module._module_name, inputs)

    @_until_the_disk_is_full
    def save_gradients(self, module: nn.Module) -> None:
        """Save the gradients of a step that is due."""
        for name, parameter in _learning(module):
            if parameter.grad is not None:
                self._save_with_sample(self.GRADIENT_PREFIX + name, parameter.grad)

    @_until_the_disk_is_full
    def finish(self, scalars: dict[str, float]) -> None:
        """Save the scalars of a step that is due and end it; from now on it can be read."""
        for name, value in scalars.items():
            self.save_scalar(name, value)
        self._close_writers()
        if not self.exported_collections:
            self.export_collections()
            self.exported_collections = True
        self.due, self.reduced = False, ("", {})

    def close(self) -> None:
        """End the trial; what is saved of a step under way is kept."""
        atexit.unregister(self._cleanup)
        # Once more, now with the names of all tensors.
        self.exported_collections = False
        self._close()

    @_until_the_disk_is_full
    def _close(self) -> None:
        super().close()
        # In a SageMaker job smdebug leaves that to the service, which no longer does it: whoever
        # reads the trial would wait for more.
        Path(self.out_dir, END_OF_JOB_FILENAME).touch()

    def give_up(self, error: Exception) -> None:
        """Say why nothing more is saved, and remove what is half written."""
        self.due, self.given_up, self.writer = False, True, None
        for path in Path(self.out_dir).rglob("*.tmp"):
            path.unlink(missing_ok=True)
        self.say(f"the debugger saves no more, the training goes on: {error}")

    def _initialize_writers(self, only_initialize_if_missing: bool = False) -> None:
        if self.writer is None or not only_initialize_if_missing:
            super()._initialize_writers()
            if self.writer:
                writer = self.writer
                writer._proto_writer = _EventFile(writer.event_file_path, writer.index_writer)

    def _write_raw_tensor_simple(self, tensor_name, tensor_value, tensor_ref=None, timestamp=None):
        """As smdebug's own, which spends most of its time on building every message anew."""
        values = self._make_numpy_array(tensor_value)
        if self.writer is None or not values.size:
            return
        mode_step = self.mode_steps[self.mode]
        key = (tensor_name, self.mode, values.shape, values.dtype)
        if key not in self.events:
            metadata = FileWriter._get_metadata(self.mode, mode_step)
            tensor = make_tensor_proto(values, tensor_name)
            value = Summary.Value(tag=tensor_name, metadata=metadata, tensor=tensor)
            self.events[key] = Event(summary=Summary(value=[value]))
        event = self.events[key]
        event.wall_time, event.step = timestamp or time.time(), self.step
        event.summary.value[0].metadata.plugin_data[0].content = str(mode_step)
        event.summary.value[0].tensor.tensor_content = values.tobytes()
        self.writer.proto_writer.write_event(
            EventWithIndex(event, tensor_name, self.mode, mode_step)
        )

    def _save(self, name: str, make: Callable[[], torch.Tensor]) -> None:
        collections = self._get_collections_with_tensor(name)
        if collections & self._get_collections_to_save_for_step():
            self._save_for_tensor(name, make())

    def _save_with_sample(self, name: str, tensor: torch.Tensor) -> None:
        self._save_for_tensor(name, tensor)
        self._save(f"sample/{name}", lambda: self._sample(tensor))

    def _sample(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() <= SAMPLE:
            return tensor
        if tensor.shape not in self.places:
            # Evenly spaced ones would hit the same tap of every kernel.
            generator = torch.Generator().manual_seed(0)
            places = torch.randperm(tensor.numel(), generator=generator)[:SAMPLE].sort().values
            places = torch.unravel_index(places, tensor.shape)
            self.places[tensor.shape] = tuple(place.to(tensor.device) for place in places)
        return tensor[self.places[tensor.shape]]

    def _get_reduction_of_data(self, reduction_name, tensor_value, tensor_name, abs):
        # smdebug asks for one after the other, of the same tensor. By name: what a ReLU gives back
        # can be the tensor that it took, overwritten.
        if self.reduced[0] != tensor_name:
            self.reduced = (tensor_name, _reductions(tensor_value.detach().float()))
        known = self.reduced[1].get((reduction_name, abs))
        if known is not None:
            return known
        whole = tensor_value.detach().float()
        return super()._get_reduction_of_data(reduction_name, whole, tensor_name, abs)

    @staticmethod
    def _make_numpy_array(tensor_value) -> np.ndarray:
        if isinstance(tensor_value, torch.Tensor) and tensor_value.dtype == torch.bfloat16:
            tensor_value = tensor_value.float()
        return smdebug.pytorch.Hook._make_numpy_array(tensor_value)


class _EventFile(EventFileWriter):
    """An event file and its index, written in the calling thread.

    smdebug's own hands over record by record to a thread, which takes longer, and waits for ever
    once that thread has met a full disk.
    """

    def __init__(self, path: str, index_writer):
        self._ev_writer = EventsWriter(path, index_writer)
        self._ev_writer.init()
        self._relative = get_relative_event_file_path(path)

    def write_event(self, event) -> None:
        start, length = self._ev_writer.write_event(event.event)
        self._ev_writer.index_writer.add_index(
            TensorLocation(
                tname=event.tensorname,
                mode=event.get_mode(),
                mode_step=event.mode_step,
                event_file_name=self._relative,
                start_idx=start,
                length=length,
                worker=DEFAULT_WORKER_NAME,
            )
        )

    def flush(self) -> None:
        self._ev_writer.flush()

    def close(self) -> None:
        self._ev_writer.close()


def _learning(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            yield f"{module._get_name()}_{name}", parameter


def _activity(outputs: torch.Tensor) -> torch.Tensor:
    """Return for each unit the share in percent of outputs above 0: (N, units, …) to (units)."""
    others = [axis for axis in range(outputs.ndim) if axis != 1]
    return 100 * (outputs.detach() > 0).float().mean(others)


def _reductions(values: torch.Tensor) -> dict[tuple[str, bool], np.ndarray]:
    """Return the reductions of float32 values by (name, of their absolute values?).

    Variance and standard deviation are the unbiased ones, as smdebug's; of one value they are 0.
    """
    if values.ndim == 4:
        # In the order of the memory (channels last), or every reduction would copy them.
        values = values.permute(0, 2, 3, 1)
    values = values.reshape(-1)
    (low, high), mean = values.aminmax(), values.mean()
    # torch.var takes twenty times as long.
    deviation = torch.linalg.vector_norm(values - mean)
    variance = deviation.square() / max(1, values.numel() - 1)
    norms = [torch.linalg.vector_norm(values, order) for order in (1, 2)]
    # One transfer from the device instead of eight.
    low, high, variance, mean, l1, l2 = torch.stack([low, high, variance, mean, *norms]).cpu()
    reductions = {
        ("min", False): low,
        ("max", False): high,
        ("mean", False): mean,
        ("std", False): variance.sqrt(),
        ("variance", False): variance,
        ("l2", False): l2,
        ("mean", True): l1 / values.numel(),
        ("max", True): torch.maximum(low.abs(), high.abs()),
    }
    return {key: value.numpy() for key, value in reductions.items()}
