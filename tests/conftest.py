"""Fixtures for all tests: the data at hand, a small data set of our own, a model trained on it."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
# One thread: the tests share the machine, and small tensors gain nothing from more.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# They take longest, so they begin first: no worker is left with one of them while others idle.
LONGEST = ("test_inventory_bins", "test_dog_breeds", "test_course", "test_listings_web_app")
LONGEST += ("test_course_without_data", "test_your_own_folder", "test_site", "test_datasets")
LONGEST += ("test_model_jobs", "test_hosts_and_interruptions", "test_search_and_evaluation")
LONGEST += ("test_setup", "test_train_model", "test_page", "test_durability")
LONGEST += ("test_lifecycle", "test_debugging", "test_evaluate", "test_web", "test_learning_curve")
LONGEST += ("test_training", "test_deploy", "test_report", "test_hosting_sdk", "test_execute")
LONGEST += ("test_profile_rules", "test_rules", "test_validation", "test_cloud")


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="module", autouse=True)
def _no_session_for_the_next_module():
    """boto3 would go on with the credentials of a local cloud that is gone."""
    yield
    if "boto3" in sys.modules:
        sys.modules["boto3"].DEFAULT_SESSION = None


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    """A real local cloud, as `connect("local")` returns it; the environment is restored after."""
    from studio.cloud import connect

    before = dict(os.environ)
    os.environ["LOCAL_CLOUD_HOME"] = str(tmp_path_factory.mktemp("cloud") / "home")
    try:
        yield connect("local")
    finally:
        command = [sys.executable, "-m", "local_cloud", "reset"]
        subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def data_dir():
    """The folder of the real data sets; a test that needs it is skipped where it is absent."""
    folder = Path(os.environ.get("DATA_DIR", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the real data: DATA_DIR or {folder}")
    return folder


@pytest.fixture(scope="session")
def run_script(tmp_path_factory):
    """Run an entry point in an empty folder, as its own process; returns CompletedProcess."""

    def run(script, *args, **env):
        return subprocess.run(
            [sys.executable, ROOT / script, *map(str, args)],
            cwd=tmp_path_factory.mktemp("cwd"),
            env={**os.environ, **{key: str(value) for key, value in env.items()}},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture(scope="session")
def stripes(tmp_path_factory):
    """A folder with train, valid and test of three classes that a small model tells apart."""
    from samples import write_stripes

    folder = tmp_path_factory.mktemp("stripes")
    for seed, (split, count) in enumerate({"train": 24, "valid": 8, "test": 8}.items()):
        write_stripes(folder / split, count, seed)
    return folder


@pytest.fixture(scope="session")
def training_job(run_script, stripes, tmp_path_factory):
    """A finished train_model.py, started the way a SageMaker job is: (process, model, output)."""
    folder = tmp_path_factory.mktemp("job")
    model, output = folder / "model", folder / "output"
    process = run_script(
        "train_model.py",
        *("--epochs", 4, "--batch-size", 16, "--lr", 0.01),
        SM_CHANNEL_TRAIN=stripes / "train",
        SM_CHANNEL_VALID=stripes / "valid",
        SM_MODEL_DIR=model,
        SM_OUTPUT_DATA_DIR=output,
    )
    assert process.returncode == 0, process.stderr
    return process, model, output


@pytest.fixture(scope="session")
def model_dir(training_job):
    return training_job[1]


# Not for the whole session: while Playwright runs, nothing else in its thread can use asyncio.
@pytest.fixture(scope="module")
def chromium():
    """A Chromium without a window, driven by Playwright; skips the test where there is none."""
    from studio import web

    with contextlib.ExitStack() as stack:
        try:
            browser = stack.enter_context(web.chromium())
        except web.NoBrowser as reason:
            pytest.skip(str(reason))
        yield browser
