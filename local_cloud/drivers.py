"""What the drivers of SDK 3's `ModelTrainer` need to run as plain processes.

They come in the channel `sm_drivers`, the code beside them in the channel `code`. They name the
first host `algo-1` and its port 7777, which resolves in no process and would make jobs that run
side by side meet each other, and `mpirun` would need a shell server on every host.
"""

import json
import re

from local_cloud.errors import JobFailed

DRIVERS, CODE = "sm_drivers", "code"
MASTER = re.compile(r'^SM_MASTER_ADDR = "algo-1"$', re.MULTILINE)
PORT = re.compile(r"^SM_MASTER_PORT = 7777$", re.MULTILINE)


def prepare(container, address, port):
    """Make the drivers and the code of one host find its folder and the first host.

    Args:
        container: the host's container, with its channels.
        address: name of the first host.
        port: port of the first host where the hosts of this job meet.

    Raises:
        JobFailed: the job asks for MPI.
    """
    data = container.ml / "input" / "data"
    for channel in (DRIVERS, CODE):
        container.localize_scripts(data / channel)
    script = data / DRIVERS / "sm_train.sh"
    if script.is_file() and "mpi_driver.py" in script.read_text():
        raise JobFailed(
            "ClientError: local_cloud does not start MPI jobs, which need a shell server on every "
            "host; use Torchrun."
        )
    environment = data / DRIVERS / "scripts" / "environment.py"
    if environment.is_file():
        text = MASTER.sub(f'SM_MASTER_ADDR = "{address}"', environment.read_text())
        environment.write_text(PORT.sub(f"SM_MASTER_PORT = {port}", text))


def processes_each(container):
    """The processes that the drivers start on a host, as `distributed.json` says; 1 without it."""
    try:
        path = container.ml / "input" / "data" / DRIVERS / "distributed.json"
        count = json.loads(path.read_text()).get("process_count_per_node")
    except (OSError, ValueError, AttributeError):
        return 1
    return count if isinstance(count, int) and count > 0 else 1
