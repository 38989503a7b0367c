"""Reads a labelled split into memory: class folders, tar or RecordIO files, with equal results."""

import hashlib
import itertools
import json
import os
import statistics
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from vision import recordio
from vision.errors import ExpectedError, PictureError
from vision.preprocessing import decode, open_picture

# Up to this size pictures are small in themselves (digits, Fashion-MNIST, CIFAR) and keep their
# own; larger ones get the size that ImageNet's architectures were made for.
LARGEST_SMALL_PICTURE = 32
DEFAULT_IMAGE_SIZE = 224
# Enough for a --dry-run to go through everything once.
DRY_RUN_PICTURES = 16
# Beside RecordIO files: the class names, in the order of their labels.
CLASSES_FILE = "classes.json"


@dataclass(frozen=True)
class Entry:
    """One picture of a split: a whole file, or `size` bytes of a tar or RecordIO file.

    They start at `offset`; `rest` are the further parts of a cut record, joined by its magic word.
    """

    class_name: str
    file: str
    path: Path
    offset: int = 0
    size: int = -1
    rest: tuple[tuple[int, int], ...] = ()

    @property
    def name(self) -> str:
        return f"{self.class_name}/{self.file}"

    def read(self) -> bytes:
        """Return the picture's bytes; raises ExpectedError where the packed file ends too early."""
        parts = ((self.offset, self.size), *self.rest)
        with self.path.open("rb") as file:
            data = recordio.read_parts(file, parts)
        if len(data) < sum(size for _, size in parts):
            raise ExpectedError(f"{self.path} is cut off within {self.name}: upload it again")
        return data


@dataclass(frozen=True)
class Split:
    """Pictures in memory: `images` uint8 (N, C, H, W), `labels` int64 (N), names "class/file"."""

    images: torch.Tensor
    labels: torch.Tensor
    names: list[str]
    class_names: list[str]
    data_hash: str

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: torch.Tensor) -> "Split":
        """Return the pictures at `indices`; the hash stays that of the files that were read."""
        return Split(
            self.images[indices],
            self.labels[indices],
            [self.names[i] for i in indices.tolist()],
            self.class_names,
            self.data_hash,
        )


def list_split(folder: str | Path) -> list[Entry]:
    """List a split, sorted by class, then by file name.

    `folder` holds one sub-folder a class, or .tar files with members `<class>/<file>`, or RecordIO
    files (.rec); the last two are read in place. A record's class and file are those of its line
    in the .lst file of the same name; without one, the class is its label's name in classes.json
    (a list), or else the label itself. Names that begin with a dot are left out. Raises
    ExpectedError where the folder is missing or empty, or holds anything else.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ExpectedError(f"{folder} is not a folder: name the one that holds the pictures")
    children = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    class_folders = [path for path in children if path.is_dir()]
    tars = [path for path in children if path.is_file() and path.suffix == ".tar"]
    recs = [path for path in children if path.is_file() and path.suffix == ".rec"]
    beside = [path for path in children if recs and _is_beside_records(path)]
    for path in children:
        if path not in (*class_folders, *tars, *recs, *beside):
            raise ExpectedError(
                f"{path} is neither a class folder nor a .tar or .rec file: take it out of {folder}"
            )
    if bool(class_folders) + bool(tars) + bool(recs) > 1:
        raise ExpectedError(f"{folder} mixes class folders, .tar and .rec files: keep one kind")

    counts = Counter({path.name: 0 for path in class_folders})
    entries = []
    for class_folder in class_folders:
        entries += _list_class_folder(class_folder)
    for tar in tars:
        members, classes = _list_tar(tar)
        entries += members
        counts.update(dict.fromkeys(classes, 0))
    for rec in recs:
        entries += _list_records(rec)
    counts.update(entry.class_name for entry in entries)

    if not counts:
        raise ExpectedError(f"{folder} holds no class folders: make one for each class")
    for name, count in counts.items():
        if count == 0:
            raise ExpectedError(
                f"class {name!r} in {folder} has no pictures: add some or remove the class"
            )
    entries.sort(key=lambda entry: (entry.class_name, entry.file))
    _check_names(folder, entries)
    for first, second in itertools.pairwise(entries):
        if first.name == second.name:
            raise ExpectedError(f"{first.name} is twice in {folder}: remove one of the two")
    return entries


def _check_names(folder: Path, entries: Sequence[Entry]) -> None:
    for entry in entries:
        try:
            entry.name.encode()
        except UnicodeEncodeError as error:
            raise ExpectedError(
                f"the name {entry.name!a} in {folder} is not UTF-8: rename it"
            ) from error


def _list_class_folder(folder: Path) -> list[Entry]:
    entries = []
    with os.scandir(folder) as children:
        for child in children:
            if child.name.startswith("."):
                continue
            if not child.is_file():
                raise ExpectedError(
                    f"{child.path} is not a picture file: class folders hold pictures only"
                )
            entries.append(Entry(folder.name, child.name, Path(child.path)))
    return entries


def _list_tar(path: Path) -> tuple[list[Entry], set[str]]:
    entries, classes = [], set()
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                parts = [part for part in member.name.split("/") if part not in ("", ".")]
                if not parts or any(part.startswith(".") and part != ".." for part in parts):
                    continue
                if member.isdir() and len(parts) == 1 and parts[0] != "..":
                    classes.add(parts[0])
                    continue
                if not member.isreg() or member.sparse or len(parts) != 2 or ".." in parts:
                    raise ExpectedError(
                        f"{path} holds {member.name!r}, which is not <class>/<file>: "
                        "pack the class folders themselves"
                    )
                entries.append(Entry(*parts, path, member.offset_data, member.size))
            # tarfile takes a cut or damaged header for the end; a whole file ends in zeros.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("its end is missing")
    except tarfile.TarError as error:
        raise ExpectedError(f"{path} is not a complete, uncompressed tar file: {error}") from error
    return entries, classes


def _is_beside_records(path: Path) -> bool:
    return path.is_file() and (path.suffix in (".idx", ".lst") or path.name == CLASSES_FILE)


def _list_records(path: Path) -> list[Entry]:
    listed = path.with_suffix(".lst")
    rows = recordio.read_list(listed) if listed.is_file() else None
    class_names = _read_class_names(path.parent / CLASSES_FILE)
    name_of: dict[int, str] = {}
    entries = []
    for record in recordio.read_records(path):
        label = _whole_label(record, path)
        if rows is None:
            file, name = f"{path.stem}-{record.number:08d}", None
        else:
            file, name = _listed_name(record, rows, listed)
        name = name or _name_of_label(label, class_names, path)
        if name_of.setdefault(label, name) != name:
            raise ExpectedError(
                f"{listed} names the label {label} both {name_of[label]!r} and {name!r}: "
                "write it again with one folder a class"
            )
        (offset, size), *rest = record.parts
        entries.append(Entry(name, file, path, offset, size, tuple(rest)))
    _check_index(path, len(entries))
    return entries


def _check_index(path: Path, records: int) -> None:
    """Notice a file that is cut off exactly between two records, where there is an index."""
    index = path.with_suffix(".idx")
    if index.is_file() and (indexed := index.read_bytes().count(b"\n")) != records:
        raise ExpectedError(
            f"{path} holds {records} pictures and {index.name} names {indexed}: upload both again"
        )


def _whole_label(record: recordio.Record, path: Path) -> int:
    if record.label < 0 or not record.label.is_integer():
        raise ExpectedError(
            f"{path} gives picture {record.number} the label {record.label:g}: "
            "classes are numbered 0, 1, 2 and so on"
        )
    return int(record.label)


def _listed_name(
    record: recordio.Record, rows: dict[int, tuple[float, str]], listed: Path
) -> tuple[str, str | None]:
    """Return file and class by the record's line; None for a class where the path has no folder."""
    label, name = rows.get(record.number, (None, ""))
    if label != record.label:
        raise ExpectedError(
            f"{listed} does not give picture {record.number} the label {record.label:g}: "
            "upload the .lst and .rec files of one packing"
        )
    *folders, file = name.replace("\\", "/").split("/")
    return file, (folders[-1] or None) if folders else None


def _read_class_names(path: Path) -> list[str] | None:
    if not path.is_file():
        return None
    try:
        names = json.loads(path.read_bytes())
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ExpectedError(f"{path} is not a JSON list of class names: write one, in label order")
    return names


def _name_of_label(label: int, class_names: list[str] | None, path: Path) -> str:
    if class_names is None:
        return str(label)
    if label >= len(class_names):
        raise ExpectedError(
            f"{path} has the label {label} and {CLASSES_FILE} {len(class_names)} names: add it"
        )
    return class_names[label]


def spread(entries: Sequence[Entry], at_most: int) -> list[Entry]:
    """Pick at most that many entries, evenly over the list and so over the classes."""
    count = min(at_most, len(entries))
    return [entries[i * len(entries) // count] for i in range(count)]


def natural_shape(entries: Sequence[Entry]) -> tuple[int, int]:
    """Return the image size and the number of channels that suit a split.

    From the headers of one picture a class: the median short side where that is at most
    LARGEST_SMALL_PICTURE, else DEFAULT_IMAGE_SIZE; one channel where all of them are grey.
    """
    first_of_class = {entry.class_name: entry for entry in reversed(entries)}.values()
    short_sides, channels = [], 1
    for entry in first_of_class:
        with _naming(entry):
            image = open_picture(entry.read())
        short_sides.append(min(image.size))
        if not image.mode.startswith(("1", "L", "I")):
            channels = 3
    median = statistics.median_low(short_sides)
    return (median if median <= LARGEST_SMALL_PICTURE else DEFAULT_IMAGE_SIZE), channels


def labels_of(entries: Sequence[Entry], class_names: Sequence[str]) -> torch.Tensor:
    """Return the place of each entry's class in `class_names`, int64 (N).

    Raises ExpectedError for a class that is not among them.
    """
    index_of = {name: index for index, name in enumerate(class_names)}
    for entry in entries:
        if entry.class_name not in index_of:
            raise ExpectedError(
                f"class {entry.class_name!r} of {entry.path} is not among the known classes "
                f"({', '.join(class_names)}): the splits must have the same classes"
            )
    return torch.tensor([index_of[entry.class_name] for entry in entries])


def load_split(
    entries: Sequence[Entry], class_names: Sequence[str], image_size: int, channels: int
) -> Split:
    """Decode every picture once, in threads, into one uint8 tensor.

    `data_hash` is the SHA-256 over the sorted class and file names and the SHA-256 of each
    file's bytes. Raises ExpectedError for a class that is not in `class_names`, a picture that
    cannot be read, or more pictures than fit into this machine's memory.
    """
    labels = labels_of(entries, class_names)
    shape = (len(entries), channels, image_size, image_size)
    _check_memory(shape)
    images = torch.empty(shape, dtype=torch.uint8)
    digests = [b""] * len(entries)

    def read(numbers: range) -> None:
        for i in numbers:
            with _naming(entries[i]):
                data = entries[i].read()
                images[i] = decode(open_picture(data), image_size, channels)
            digests[i] = hashlib.sha256(data).digest()

    # Chunks, because handing over one small picture at a time costs more than decoding it.
    chunks = [range(i, min(i + 64, len(entries))) for i in range(0, len(entries), 64)]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for _ in pool.map(read, chunks):
            pass

    return Split(
        images,
        labels,
        [entry.name for entry in entries],
        list(class_names),
        _hash(entries, digests),
    )


def hash_split(entries: Sequence[Entry]) -> str:
    """Return the `data_hash` that load_split computes, without decoding a picture."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return _hash(entries, pool.map(_digest, entries))


def _digest(entry: Entry) -> bytes:
    with _naming(entry):
        return hashlib.sha256(entry.read()).digest()


def _hash(entries: Sequence[Entry], digests: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for entry, digest in zip(entries, digests, strict=True):
        total.update(f"{entry.class_name}\0{entry.file}\0".encode() + digest)
    return total.hexdigest()


class _naming:
    """Makes one sentence, with the name of the picture, of what keeps it from being read."""

    def __init__(self, entry: Entry):
        self.entry = entry

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, PermissionError | FileNotFoundError):
            raise ExpectedError(f"{self.entry.path} cannot be read: {error.strerror}") from error
        if isinstance(error, PictureError):
            inside = "" if self.entry.size < 0 else f", {self.entry.name}"
            raise ExpectedError(
                f"{self.entry.path}{inside}: {error}; replace it or take it out of the data"
            ) from error


def _check_memory(shape: tuple[int, int, int, int]) -> None:
    needed = shape[0] * shape[1] * shape[2] * shape[3]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # Half of it, so that the model and its activations still have room.
    if needed > memory / 2:
        raise ExpectedError(
            f"{shape[0]} pictures of {shape[2]}×{shape[3]} pixels need {needed / 1e9:.1f} GB and "
            f"this machine has {memory / 1e9:.1f} GB: use a smaller --image-size, fewer pictures "
            "or a larger machine"
        )


def check_all_seen(seen: int, split: Split) -> None:
    """Raise where a mean would be over other samples than the split's own."""
    if seen != len(split):
        raise RuntimeError(f"saw {seen} pictures, the split has {len(split)}")


def channel_statistics(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of each channel of uint8 pictures (N, C, H, W), black 0, white 1.

    Counted from the histogram of the 256 values: exact, and no float copy of the pictures.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(1):
        weights = torch.bincount(channel.flatten(), minlength=256).double()
        weights /= weights.sum()
        mean = (weights * values).sum()
        std = (weights * (values - mean) ** 2).sum().sqrt()
        means.append(mean.item())
        # Blank pictures have no spread; dividing by one leaves them at zero.
        stds.append(std.item() or 1.0)
    return tuple(means), tuple(stds)
