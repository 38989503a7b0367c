"""Pictures for tests, whole and broken, and the lines that a training job prints."""

import gzip
import io
import re
import signal
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

METRIC_LINE = re.compile(
    r"^epoch=\d+ train_loss=\d+\.\d{4} train_accuracy=[01]\.\d{4} valid_loss=\d+\.\d{4} "
    r"valid_accuracy=[01]\.\d{4} lr=\S+ seconds=\d+\.\d data_seconds=\d+\.\d$",
    re.MULTILINE,
)
LAST_LINE = re.compile(
    r"^best_epoch=(\d+) best_valid_accuracy=([01]\.\d{4}) best_valid_loss=(\d+\.\d{4})$",
    re.MULTILINE,
)


def encode(pixels, kind="PNG", **options):
    """Return the bytes of a picture with these pixels (H, W) or (H, W, 3 or 4)."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height=40, width=60, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_stripes(folder, count, seed, size=16):
    """Write `count` noisy pictures each of lying stripes, standing stripes and squares."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((size, size)) // 2 % 2
    patterns = {"lying": rows, "squares": rows ^ columns, "standing": columns}
    for name, pattern in patterns.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            contrast = rng.uniform(60, 160)
            pixels = 40 + contrast * pattern + rng.normal(0, 30, pattern.shape)
            (folder / name / f"{i:03d}.png").write_bytes(encode(pixels.clip(0, 255)))


def write_tar(path, members):
    """Write {name: bytes, or a TarInfo for a link and the like} as an uncompressed tar file."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def link(name, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def huge_png(width=20_000, height=20_000):
    """A PNG of a few bytes whose header claims a huge picture."""

    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def fashion_mnist(data_dir, count):
    """Return the first `count` training pictures, uint8 (N, 1, 28, 28), and labels (N)."""
    raw = data_dir / "FashionMNIST" / "raw"
    with gzip.open(raw / "train-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(16 + count * 784), np.uint8, offset=16)
    with gzip.open(raw / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(8 + count), np.uint8, offset=8)
    return pixels.reshape(-1, 1, 28, 28).copy(), labels.astype(np.int64)


def heed_ctrl_c():
    """For `preexec_fn`: a process heeds SIGINT even where the tests run in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
