"""Folders that are copied to S3 while a job writes into them, such as its checkpoints."""

import contextlib
import os
import shutil
import threading
from pathlib import Path

from local_cloud.aws import split_uri
from local_cloud.errors import JobFailed

INTERVAL = 1.0  # Seconds between two looks at the folder.


class FolderSync:
    """Copies the files of a folder to S3 whenever they change, and a last time at the end.

    A file goes up only when it was the same at two looks, and only as a whole: it is copied beside
    the folder first, and the copy is thrown away where the original changed meanwhile. Files that
    disappear stay in S3.

    Args:
        aws: the `LocalAws` of the instance.
        folder: what to watch.
        uri: `s3://` address that stands for the folder.
        scratch: path for the copies, on the same disk.
    """

    def __init__(self, aws, folder, uri, scratch):
        self.aws, self.folder, self.scratch = aws, folder, scratch
        self.uri = uri.rstrip("/") + "/"  # A folder: `…/run1` must not bring `…/run10`.
        self.bucket, self.prefix = split_uri(self.uri)
        self._seen = {}
        self._sent = {}
        self._closed = threading.Event()
        self._thread = None

    def restore(self):
        """Bring what is in S3 already into the folder."""
        keys = self.aws.keys_below(self.uri)
        self.aws.download_keys(self.bucket, self.prefix, keys, self.folder)
        self._sent = self._states()

    def start(self):
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self):
        """Stop watching and copy what has changed since.

        Raises:
            JobFailed: S3 refused it.
        """
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        for path, state in self._states().items():
            if self._sent.get(path) != state:
                self._send(path, state)

    def _watch(self):
        while not self._closed.wait(INTERVAL):
            present = self._states()
            for path, state in present.items():
                if self._seen.get(path) == state != self._sent.get(path):
                    # A missing bucket is reported at the end, where the job can still fail.
                    with contextlib.suppress(JobFailed, OSError):
                        self._send(path, state)
            self._seen = present

    def _states(self):
        """Size and time of the last change of every file."""
        states = {}
        for parent, _, names in os.walk(self.folder):
            for path in (Path(parent, name) for name in names):
                with contextlib.suppress(FileNotFoundError):  # Deleted since the folder was read.
                    states[path] = state_of(path)
        return states

    def _send(self, path, state):
        try:
            shutil.copyfile(path, self.scratch)
            if state_of(path) != state:
                return
        except FileNotFoundError:
            return
        key = self.prefix + path.relative_to(self.folder).as_posix()
        self.aws.upload_file(self.scratch, self.bucket, key)
        self._sent[path] = state


def state_of(path):
    status = path.stat()
    return status.st_size, status.st_mtime_ns
