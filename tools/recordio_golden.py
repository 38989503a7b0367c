"""RecordIO by MXNet's own hands: what vision/recordio.py is compared with.

    uv venv mxnet-venv --python 3.11
    uv pip install --python mxnet-venv mxnet==1.9.1 "numpy<1.24" pillow opencv-python-headless
    mxnet-venv/bin/python tools/recordio_golden.py write tests/vision/golden
    mxnet-venv/bin/python tools/recordio_golden.py check build/packed/train/train.rec \\
        build/data/<data set>/train

`write` makes tiny pictures and packs them with MXNet's im2rec; `check` reads a packed split with
MXNet's reader and with the iterator that trains on it, and compares both with the pictures. An
environment of its own, because MXNet has ended and cannot live with a NumPy of this decade.
"""

import os
import struct
import subprocess
import sys
from pathlib import Path

import mxnet
import numpy as np
from PIL import Image

MAGIC = struct.pack("<I", 0xCED7230A)
IM2REC = Path(mxnet.__file__).parent / "tools" / "im2rec.py"


def write(folder: Path) -> None:
    """Make `folder`/pictures/<class>/<file> and golden.rec, golden.idx and golden.lst of them."""
    rng = np.random.default_rng(0)
    for name in ("ashes", "birch", "cedar"):
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (8 + i, 9, 3), dtype=np.uint8)
            kind = ("png", "jpg")[i % 2]
            Image.fromarray(pixels).save(folder / "pictures" / name / f"{i}.{kind}", quality=50)
    # Decoders ignore what follows the end of a picture; the magic word there cuts the record.
    aligned = folder / "pictures" / "ashes" / "1.jpg"
    data = aligned.read_bytes()
    data += bytes(-len(data) % 4) + MAGIC + MAGIC + b"abc" + MAGIC + b"d" + MAGIC
    aligned.write_bytes(data)
    unaligned = folder / "pictures" / "birch" / "0.png"
    data = unaligned.read_bytes()
    unaligned.write_bytes(data + bytes(-len(data) % 4) + b"x" + MAGIC + MAGIC + b"tail")
    im2rec = [sys.executable, IM2REC, folder / "golden", folder / "pictures"]
    subprocess.run([*im2rec, "--list", "--recursive"], check=True)
    subprocess.run([*im2rec, "--pass-through"], check=True)


def check(rec: Path, pictures: Path) -> None:
    """Compare every record with the picture it was made of, and every label with the list."""
    rows = [line.split("\t") for line in rec.with_suffix(".lst").read_text().splitlines()]
    reader = mxnet.recordio.MXIndexedRecordIO(str(rec.with_suffix(".idx")), str(rec), "r")
    if reader.keys != [int(number) for number, _, _ in rows]:
        raise SystemExit(f"{rec}: .idx and .lst do not agree")
    for number, label, name in rows:
        header, picture = mxnet.recordio.unpack(reader.read_idx(int(number)))
        if (header.flag, header.label, header.id) != (0, float(label), int(number)):
            raise SystemExit(f"{rec}: {name} has the header {header}")
        if picture != (pictures / name).read_bytes():
            raise SystemExit(f"{rec}: {name} has other bytes")
    iterator = mxnet.io.ImageRecordIter(
        path_imgrec=str(rec),
        data_shape=(3, 8, 8),
        batch_size=1,
        resize=8,
        preprocess_threads=os.cpu_count(),
    )
    labels = [float(batch.label[0].asscalar()) for batch in iterator]
    if labels != [float(label) for _, label, _ in rows]:
        raise SystemExit(f"{rec}: ImageRecordIter sees other labels")
    print(f"{rec.name}: {len(rows)} records, read by MXNet {mxnet.__version__}")


if __name__ == "__main__":
    command, *paths = sys.argv[1:]
    {"write": write, "check": check}[command](*map(Path, paths))
