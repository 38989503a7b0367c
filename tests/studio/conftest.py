"""A real local cloud for the tests of one module."""

import os
import subprocess
import sys

import pytest

from studio.cloud import ROOT, connect


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    """What `connect("local")` returns; the cloud ends, and the environment is as before, after."""
    before = dict(os.environ)
    os.environ["LOCAL_CLOUD_HOME"] = str(tmp_path_factory.mktemp("cloud") / "home")
    try:
        yield connect("local")
    finally:
        command = [sys.executable, "-m", "local_cloud", "reset"]
        subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        os.environ.clear()
        os.environ.update(before)
