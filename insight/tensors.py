"""Reads what smdebug's hook saved: one interface to reductions, samples and whole tensors."""

import logging
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from smdebug.core.access_layer.s3handler import ReadObjectRequest, S3Handler
from smdebug.core.collection_manager import CollectionManager
from smdebug.core.modes import ModeKeys
from smdebug.core.s3_utils import list_s3_objects
from smdebug.core.tfrecord.tensor_reader import TensorReader
from smdebug.core.utils import (
    get_path_to_collections,
    is_s3,
    list_collection_files_in_directory,
)
from smdebug.exceptions import IndexReaderException, TensorUnavailableForStep
from smdebug.trials import create_trial
from smdebug.trials.trial import Trial

from vision.errors import ExpectedError

# What the hook adds beside smdebug's own tensors, by the beginning of the name.
SAMPLE, ACTIVITY, SCALAR, GRADIENT = "sample/", "activity/", "scalar/", "gradient/"
COPIES = (SAMPLE, ACTIVITY, SCALAR)
LOSS = r"[Ll]oss_(?!input).*output"


def open_trial(place: str) -> Trial:
    """Open what a training has saved so far, in a folder or below an s3:// URI.

    The trial is the run up to now: nothing that is saved later is looked for, and nothing waits.
    S3 is asked where boto3 finds it ($AWS_ENDPOINT_URL_S3, $AWS_ENDPOINT_URL, $AWS_REGION).
    Raises ExpectedError where there are no tensors.
    """
    logging.getLogger("smdebug").setLevel(logging.ERROR)
    place = str(place).rstrip("/")
    S3Handler.client.cache_clear()  # It would go on asking where it asked first.
    _check_complete(place)
    try:
        trial = create_trial(place)
    except IndexReaderException as error:
        raise ExpectedError(
            f"the index of the tensors in {place} is damaged: copy the folder again from the "
            "training's output, or train again"
        ) from error
    trial.index_reader = _WholeFiles(trial)
    # Otherwise smdebug lists the folder again for every value, and sleeps where it sees no end.
    trial.loaded_all_steps = True
    return trial


def _check_complete(place: str) -> None:
    """Raise where smdebug would wait for files that never come."""
    on_s3, bucket, prefix = is_s3(place)
    if on_s3:
        files, _ = list_s3_objects(bucket, get_path_to_collections(prefix))
    else:
        files = list_collection_files_in_directory(get_path_to_collections(place))
    if not files:
        raise ExpectedError(
            f"there are no tensors in {place}: train with --debug true, or name the folder that "
            "holds `collections`, `index` and `events`"
        )
    if on_s3:
        text = S3Handler.get_object(ReadObjectRequest(f"s3://{bucket}/{files[0]}")).decode()
        wanted = CollectionManager.load_from_string(text).get_num_workers()
    else:
        wanted = CollectionManager.load(files[0]).get_num_workers()
    if len(files) < wanted:
        raise ExpectedError(
            f"{place} has the tensors of {len(files)} of {wanted} processes: wait until the job "
            "has ended, or copy the whole folder"
        )


class _WholeFiles:
    """In the place of a trial's reader: each file of tensors is read once, and whole.

    smdebug opens the file for every value; on S3 it lists all files, too. All files of a trial
    are held in memory, as large as they are on disk.
    """

    def __init__(self, trial: Trial):
        self.reader, self.files = trial.index_reader, {}
        self.on_s3 = is_s3(trial.path)[0]

    def fetch_tensor_value(self, location) -> np.ndarray:
        name = location.event_file_name
        if name not in self.files:
            self._read(name)
        start = int(location.start_idx)
        record = self.files[name][start : start + int(location.length)]
        try:
            return next(TensorReader(record).read_tensors())[2]
        except Exception as error:  # The reader checks little, and stumbles in many ways.
            raise ExpectedError(
                f"the tensors in {name} are damaged: copy the whole folder again"
            ) from error

    def _read(self, name: str) -> None:
        if not self.on_s3:
            with open(name, "rb") as file:
                self.files[name] = file.read()
            return
        bucket = is_s3(name)[1]
        names = [f"s3://{bucket}/{key}" for key in self.reader.list_event_files()]
        with ThreadPoolExecutor(16) as pool:
            contents = pool.map(S3Handler.get_object, map(ReadObjectRequest, names))
            self.files = dict(zip(names, contents, strict=True))


class Tensors:
    """The tensors of a trial, by global step; `phase` tells which step of training that is.

    Values come from the small copies that our hook saves where there are any, and from whole
    tensors otherwise, so that it reads any trial of smdebug's PyTorch hook.
    """

    def __init__(self, trial: Trial):
        self.trial = trial
        self._at: dict[int, set[str]] = {}
        self._chosen: dict[tuple[str, ...], set[str]] = {}
        self._learning: set[str] | None = None

    @property
    def train_mode(self) -> ModeKeys:
        """TRAIN, or GLOBAL for a script that never set a mode."""
        modes = self.trial.modes()
        return ModeKeys.TRAIN if ModeKeys.TRAIN in modes else ModeKeys.GLOBAL

    def train_steps(self) -> list[int]:
        """Return the global steps of training that something was saved of."""
        return [step for step in self.trial.steps() if self.trains(step)]

    def trains(self, step: int) -> bool:
        return self.trial.mode(step) == self.train_mode

    def validates(self, step: int) -> bool:
        return self.trial.mode(step) == ModeKeys.EVAL

    def phase_step(self, step: int) -> int:
        """Return the number of a global step within its own phase."""
        return self.trial.mode_step(step)

    def at(self, step: int) -> set[str]:
        """Return the names of what was saved at a step."""
        if step not in self._at:
            self._at[step] = set(self.trial.tensor_names(step=step))
        return self._at[step]

    def named(self, regex: Iterable[str], step: int) -> list[str]:
        """Return what was saved at a step under a name that one of the patterns is found in.

        Without the hook's small copies of tensors.
        """
        key = tuple(regex)
        if key not in self._chosen:
            names = (n for n in self.trial.tensor_names() if not n.startswith(COPIES))
            self._chosen[key] = {n for n in names if any(re.search(each, n) for each in key)}
        return sorted(self._chosen[key] & self.at(step))

    def collected(self, *collections: str, step: int) -> list[str]:
        """Return what was saved at a step of these collections, without the small copies."""
        key = ("collections", *collections)
        if key not in self._chosen:
            names = [n for n in self.trial.tensor_names() if not n.startswith(COPIES)]
            chosen = set()
            for each in map(self.trial.collection, collections):
                chosen |= each.tensor_names & set(names)
                chosen |= {n for n in names if any(re.search(r, n) for r in each.include_regex)}
            self._chosen[key] = chosen
        return sorted(self._chosen[key] & self.at(step))

    def learns(self, name: str) -> bool:
        """Whether a weight has a gradient; of every weight where the trial has no gradients."""
        if self._learning is None:
            names = self.trial.tensor_names()
            self._learning = {n.removeprefix(GRADIENT) for n in names if n.startswith(GRADIENT)}
        return not self._learning or name in self._learning

    def reduction(self, name: str, step: int, kind: str, absolute: bool = False) -> float | None:
        """Return a reduction ("min", "max", "mean", "std", "variance", "l2"), None where unsaved.

        A standard deviation is PyTorch's own where the hook took it (it divides by n - 1, so that
        it is NaN for a single value), NumPy's (by n) where it is taken here.
        """
        if name not in self.at(step):
            return None
        try:
            value = self.trial.tensor(name).reduction_value(step, kind, abs=absolute)
        except TensorUnavailableForStep:
            return None
        return float(np.asarray(value).reshape(-1)[0])

    def values(self, name: str, step: int) -> np.ndarray | None:
        """Return the sample of a tensor (1-D), or all of it, or None where neither was saved."""
        for each in (SAMPLE + name, name):
            if each in self.at(step):
                try:
                    return np.asarray(self.trial.tensor(each).value(step))
                except TensorUnavailableForStep:
                    continue
        return None

    def losses(self, step: int) -> np.ndarray | None:
        """Return the loss of a step, one value a picture or one for all, as float64 (n,)."""
        names = [n for n in self.collected("losses", step=step) if re.search(LOSS, n)]
        value = self.values(names[0], step) if names else None
        return None if value is None else value.astype(np.float64).reshape(-1)

    def first(self, regex: Iterable[str], step: int) -> np.ndarray | None:
        """Return the first tensor of a step whose name matches, None where there is none."""
        names = self.named(regex, step)
        return self.values(names[0], step) if names else None

    def scalar(self, name: str, step: int) -> float | None:
        value = self.values(SCALAR + name, step)
        return None if value is None else float(value.reshape(-1)[0])
