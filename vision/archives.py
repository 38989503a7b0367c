"""Unpacks the archives that SageMaker jobs hand on: model.tar.gz and output.tar.gz."""

import gzip
import tarfile
import zlib
from pathlib import Path

from vision.errors import ExpectedError

# VGG-16, the largest architecture here, has 0.55 GB of weights.
MAX_UNPACKED_BYTES = 2 * 1024**3


def extract(archive: Path, folder: Path, max_bytes: int = MAX_UNPACKED_BYTES) -> None:
    """Unpack a .tar.gz of files and folders into `folder`.

    Raises ExpectedError for links, devices, sparse files, paths that lead outside, or more than
    `max_bytes`.
    """
    try:
        with gzip.open(archive) as unzipped:
            stream = _Limited(unzipped, max_bytes)
            # "r|" reads strictly forward, so that the limit counts every byte once.
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    # The size of a sparse file is what it says of itself, whatever was read.
                    if not (member.isreg() or member.isdir()) or member.issparse():
                        raise ExpectedError(
                            f"{archive} holds {member.name!r}, a link, a device or a sparse file: "
                            "only plain files are unpacked"
                        )
                    tar.extract(member, folder, filter="data")
    except tarfile.FilterError as error:
        raise ExpectedError(f"{archive} is refused: {error}") from error
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ExpectedError(
            f"{archive} is damaged ({error}): fetch it again, or run the training job again"
        ) from error


class _Limited:
    """A reader that gives out so many bytes and no more."""

    def __init__(self, file, max_bytes: int):
        self.file = file
        self.max_bytes = max_bytes
        self.count = 0

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.count += len(data)
        if self.count > self.max_bytes:
            raise ExpectedError(
                f"{self.file.name} unpacks to more than {self.max_bytes / 1e9:.1f} GB: refused"
            )
        return data
