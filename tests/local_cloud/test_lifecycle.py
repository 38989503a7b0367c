"""Starting and stopping: one server a home, and nothing left behind, however it ends."""

import contextlib
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from harness import BUCKET, ROLE, Cloud, archive, command_line, processes_with, until

from local_cloud import instance

HOME_SECONDS = 2  # Between two looks of the server at whether its home is still there.

# A job that leaves processes everywhere: a plain child, one that ignores SIGTERM, one that left
# the session.
SPAWNS = """
import signal, subprocess, sys, time
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
children = [
    subprocess.Popen(["sleep", "600"]),
    subprocess.Popen([sys.executable, "-c", stubborn]),
    subprocess.Popen([sys.executable, "-c", stubborn], start_new_session=True),
]
print("spawned", flush=True)
time.sleep(600)
"""
SERVES = """
import subprocess

def model_fn(model_dir):
    return subprocess.Popen(["sleep", "600"])
"""


def start(home):
    """A started cloud in `home`."""
    started = command_line(home, "start")
    assert started.returncode == 0, started.stderr
    cloud = Cloud(home)
    cloud.s3.create_bucket(Bucket=BUCKET)
    return cloud


def populate(cloud):
    """Run a job and an endpoint; return all processes but the server."""
    name = cloud.start_training(SPAWNS)
    model = cloud.put("model.tar.gz", archive({"code/inference.py": SERVES}))
    container = {"Image": "any/image:1", "ModelDataUrl": model}
    sagemaker = cloud.sagemaker
    sagemaker.create_model(ModelName="m", ExecutionRoleArn=ROLE, PrimaryContainer=container)
    variant = {"VariantName": "v", "ModelName": "m", "InstanceType": "ml.m5.large"}
    sagemaker.create_endpoint_config(
        EndpointConfigName="c", ProductionVariants=[{**variant, "InitialInstanceCount": 1}]
    )
    sagemaker.create_endpoint(EndpointName="e", EndpointConfigName="c")
    until(lambda: "spawned" in cloud.training_lines(name))
    until(lambda: sagemaker.list_endpoints(StatusEquals="InService")["Endpoints"])
    processes = processes_with("LOCAL_CLOUD_INSTANCE", cloud.server["name"])
    others = [process for process in processes if process.pid != cloud.server["pid"]]
    assert len(others) >= 6  # The job, its three, the model server, its one.
    return others


def alive(processes):
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def port_is_free(cloud):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(cloud.url.rpartition(":")[2]))) != 0


def test_start_twice_is_one_server(own_home):
    first, second = command_line(own_home, "start"), command_line(own_home, "start")
    pattern = r"local_cloud started at http://127.0.0.1:\d+ \(process \d+\)\.\n"
    assert re.fullmatch(pattern, first.stdout)
    assert second.returncode == 0
    assert second.stdout == first.stdout.replace("started", "already running")
    assert oct((own_home / "server.json").stat().st_mode)[-3:] == "600"


def test_starts_at_the_same_moment_are_one_server(own_home):
    command = [sys.executable, "-m", "local_cloud", "start"]
    environment = {**os.environ, "LOCAL_CLOUD_HOME": str(own_home)}
    project = Path(__file__).resolve().parents[2]
    started = [
        subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    words = [process.communicate(timeout=120)[0] for process in started]
    assert sorted(text.split()[1] for text in words) == ["already", "already", "started"]
    assert len({re.search(r"process (\d+)", text)[1] for text in words}) == 1


def test_not_running(own_home):
    status = command_line(own_home, "status")
    assert (status.returncode, status.stdout) == (3, "local_cloud is not running.\n")
    env = command_line(own_home, "env")
    assert env.returncode == 1
    assert env.stderr.count("\n") == 1
    assert "not running" in env.stderr
    stop = command_line(own_home, "stop")
    assert (stop.returncode, stop.stdout) == (0, "local_cloud was not running.\n")
    assert not own_home.exists()


def test_a_port_in_use_is_one_sentence(own_home):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        started = command_line(own_home, "start", "--port", str(port))
    assert started.returncode == 1
    assert started.stderr == (
        f"local_cloud: port {port} on 127.0.0.1 cannot be used (Address already in use); "
        "choose another with --port, or 0 for any free one.\n"
    )
    assert command_line(own_home, "status").returncode == 3
    left = [path.name for path in own_home.iterdir() if path.is_dir()]
    assert left == []


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_what_is_no_port_is_refused(own_home, port):
    started = command_line(own_home, "start", "--port", port)
    assert started.returncode == 2
    assert "Traceback" not in started.stderr


def test_the_chosen_port_and_region_are_used(own_home):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command_line(own_home, "start", "--port", str(port), "--region", "eu-west-1")
    cloud = Cloud(own_home)
    assert cloud.url == f"http://127.0.0.1:{port}"
    arn = cloud.client("sagemaker").create_model(
        ModelName="m",
        ExecutionRoleArn=ROLE,
        PrimaryContainer={"Image": "i", "ModelDataUrl": "s3://bucket/key"},
    )["ModelArn"]
    assert arn == "arn:aws:sagemaker:eu-west-1:123456789012:model/m"


def test_an_unwritable_home_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    started = command_line(tmp_path / "file" / "home", "start")
    assert started.returncode == 1
    assert started.stderr.count("\n") == 1
    assert "LOCAL_CLOUD_HOME" in started.stderr


def test_a_home_with_spaces_and_other_files(tmp_path):
    home = tmp_path / "my home"
    home.mkdir()
    (home / "thesis.txt").write_text("precious")
    (home / "state").mkdir(mode=0o755)
    try:
        cloud = start(home)
        assert cloud.train("print(1)")["TrainingJobStatus"] == "Completed"
        assert stat.S_IMODE((home / "state").stat().st_mode) == 0o700
    finally:
        command_line(home, "reset")
    assert [path.name for path in home.iterdir()] == ["thesis.txt"]
    assert not Path(cloud.server["work_folder"]).exists()


def test_env_prints_what_a_shell_can_evaluate(cloud):
    shell = f'eval "$({sys.executable} -m local_cloud env)" && echo "$AWS_ENDPOINT_URL $no_proxy"'
    environment = {**os.environ, "LOCAL_CLOUD_HOME": str(cloud.home), "no_proxy": "example.org"}
    project = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        ["/bin/sh", "-c", shell], cwd=project, env=environment, capture_output=True, text=True
    )
    assert done.stdout == f"{cloud.url} example.org,127.0.0.1\n"


def test_stop_ends_every_process_and_reset_removes_every_file(own_home):
    cloud = start(own_home)
    children = populate(cloud)
    stopped = command_line(own_home, "stop")
    assert stopped.stdout == "local_cloud stopped.\n"
    assert alive(children) == []
    assert port_is_free(cloud)
    assert [path.name for path in own_home.iterdir()] == ["state"]
    assert command_line(own_home, "reset").returncode == 0
    assert not own_home.exists()


def test_stop_does_not_wait_for_a_parent_that_never_asks(own_home):
    """In a container without an init, what has ended stays listed for ever."""
    instance.start(own_home)  # This process is the parent.
    began = time.monotonic()
    assert command_line(own_home, "stop").stdout == "local_cloud stopped.\n"
    assert time.monotonic() - began < instance.STOP_TIMEOUT


def test_sigterm_to_the_server_ends_its_children(own_home):
    cloud = start(own_home)
    children = populate(cloud)
    os.kill(cloud.server["pid"], signal.SIGTERM)
    until(lambda: not alive(children))
    until(lambda: not Path(cloud.server["work_folder"]).exists())


def test_a_server_whose_home_is_removed_ends_with_its_jobs(own_home):
    cloud = start(own_home)
    name = cloud.start_training("import time; print('up', flush=True); time.sleep(600)")
    until(lambda: "up" in cloud.training_lines(name))
    shutil.rmtree(own_home)
    until(lambda: not processes_with("LOCAL_CLOUD_INSTANCE", cloud.server["name"]))
    assert port_is_free(cloud)


@pytest.mark.skipif(not hasattr(psutil, "RLIMIT_NOFILE"), reason="Linux sets limits of others")
def test_a_server_without_a_free_file_handle_goes_on(own_home):
    cloud = start(own_home)
    server = psutil.Process(cloud.server["pid"])
    limits = server.rlimit(psutil.RLIMIT_NOFILE)
    server.rlimit(psutil.RLIMIT_NOFILE, (1, limits[1]))
    time.sleep(1.5 * HOME_SECONDS)
    server.rlimit(psutil.RLIMIT_NOFILE, limits)
    assert cloud.s3.list_buckets()["Buckets"]


@pytest.fixture
def folder_without_rights():
    """A folder in which nobody, root neither, can write without the right to."""
    folder = Path(tempfile.mkdtemp())
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    yield folder
    if os.getuid() == 0:
        os.seteuid(0)
    instance.remove_tree(folder)


def test_folders_that_a_job_made_read_only_are_removed(folder_without_rights):
    tree = folder_without_rights / "tree"
    inner = tree / "opt" / "inner"
    inner.mkdir(parents=True)
    (inner / "file").write_text("1")
    (inner / "link").symlink_to(folder_without_rights)
    folder_without_rights.chmod(0o750)
    inner.chmod(0o000)
    inner.parent.chmod(0o500)
    instance.remove_tree(tree)
    assert not tree.exists()
    assert stat.S_IMODE(folder_without_rights.stat().st_mode) == 0o750


@pytest.mark.parametrize("command", ["start", "stop"])
def test_after_a_kill_of_the_server_the_next_command_cleans_up(own_home, command):
    cloud = start(own_home)
    children = populate(cloud)
    psutil.Process(cloud.server["pid"]).kill()
    assert command_line(own_home, "status").returncode == 3
    assert len(alive(children)) >= 6
    assert command_line(own_home, command).returncode == 0
    assert alive(children) == []
    assert not Path(cloud.server["work_folder"]).exists()
    if command == "start":
        new = Cloud(own_home)
        assert new.server["name"] != cloud.server["name"]
        assert new.env["AWS_SECRET_ACCESS_KEY"] != cloud.env["AWS_SECRET_ACCESS_KEY"]
        (job,) = new.sagemaker.list_training_jobs()["TrainingJobSummaries"]
        assert job["TrainingJobStatus"] == "Failed"
    else:
        assert [path.name for path in own_home.iterdir()] == ["state"]


def test_status_lists_jobs_and_endpoints(cloud):
    name = cloud.train("print(1)")["TrainingJobName"]
    status = command_line(cloud.home, "status")
    assert status.returncode == 0
    assert status.stdout.startswith(f"local_cloud runs at {cloud.url} ")
    assert re.search(rf"^training job +{name} +Completed +[-\d]+ [:\d]+", status.stdout, re.M)


def test_the_server_listens_on_this_machine_only(cloud):
    server = psutil.Process(cloud.server["pid"])
    addresses = {c.laddr.ip for c in server.net_connections() if c.status == "LISTEN"}
    assert addresses == {"127.0.0.1"}


def test_jobs_survive_the_process_that_started_them(cloud):
    # As a notebook does whose kernel is started again.
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from harness import Cloud
print(Cloud({str(cloud.home)!r}).start_training("import time; time.sleep(1); print('done')"))
"""
    started = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    name = started.stdout.strip()
    assert cloud.wait_for_training(name)["TrainingJobStatus"] == "Completed", started.stderr
