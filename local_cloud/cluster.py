"""The hosts of one job: a container each, which start together and end together.

Host names are loopback addresses, because names such as `algo-1` resolve in a container's network
only, and a distributed launch waits for ever for a name that does not. Linux answers on all of
127.0.0.0/8. macOS has 127.0.0.1 alone, which is enough where only the first host listens, as with
torchrun.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass

from local_cloud.aws import LogStream
from local_cloud.container import Container
from local_cloud.errors import JobFailed, ServiceError, invalid

MAX_HOSTS = 8  # Of one job: they share one machine, and their names sort as their numbers do.
NETWORK_INTERFACE = "lo0" if sys.platform == "darwin" else "lo"
GROUP = "homogeneousCluster"  # The service's name of the one group of equal instances.


@dataclass(frozen=True)
class Failure:
    """The first host of a job that failed."""

    container: Container
    code: int


class Cluster:
    """The containers of one job.

    Args:
        root: folder that the job has for itself; removed by `remove`.
        aws: the `LocalAws` whose credentials the job gets.
        region: region of the job.
        count: number of hosts, at most `MAX_HOSTS`.
    """

    def __init__(self, root, aws, region, count):
        self.aws, self.region = aws, region
        self.names = [f"127.0.0.{number}" for number in range(1, count + 1)]
        self.containers = []
        for number in range(1, count + 1):
            container = Container(root / f"algo-{number}", aws, region)
            # gloo would look for this machine's name in the network, which need not be there.
            container.environment["GLOO_SOCKET_IFNAME"] = NETWORK_INTERFACE
            self.containers.append(container)
        self._root = root
        self._lock = threading.Lock()
        self._failure = None
        self._error = None

    @property
    def first(self):
        """The container of the first host."""
        return self.containers[0]

    def run(self, commands, cwds, group, job_name, on_line, timeout, on_timeout):
        """Run one command a host to its end, with the output in CloudWatch Logs.

        Args:
            commands: the command of every host, as a list of words.
            cwds: the folder that every command starts in.
            group: log group; the streams are `job_name/algo-N-…`.
            on_line: called with every printed line, from several threads.
            timeout: seconds after which all are stopped.
            on_timeout: called before that, once for every host.

        Returns:
            The `Failure` of the first host that failed, after which the others were ended; None
            where all succeeded.

        Raises:
            JobFailed: a command cannot be run at all.
        """
        started = int(time.time())

        def run_host(number, container, command, cwd):
            name = f"{job_name}/algo-{number}-{started}"
            try:
                with contextlib.closing(LogStream(self.aws, self.region, group, name)) as stream:

                    def keep(line):
                        stream.write(line)
                        on_line(line)

                    code = container.run(command, cwd, keep, timeout, on_timeout)
            except OSError as error:
                self._error = JobFailed(f"AlgorithmError: cannot run {command[0]!r}: {error}")
                code = 1
            except Exception as error:  # Nobody else would see it, and the job seem complete.
                self._error, code = error, 1
            if code != 0:
                self._fail(Failure(container, code))

        threads = [
            threading.Thread(target=run_host, args=arguments, daemon=True)
            for arguments in zip(range(1, MAX_HOSTS + 1), self.containers, commands, cwds)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._error:
            raise self._error
        return self._failure

    def _fail(self, failure):
        """Keep the first failure and end the hosts that still run."""
        with self._lock:
            if self._failure is not None:
                return
            self._failure = failure
        for container in self.containers:
            if container is not failure.container and not container.is_stopping:
                container.kill()

    def stop(self):
        """Ask everything that runs to end, and kill what has not after the grace period."""
        for container in self.containers:
            container.stop()

    def remove(self):
        """Delete the folders of all hosts."""
        for container in self.containers:
            container.remove()
        with contextlib.suppress(OSError):
            self._root.rmdir()


def check_count(count, instance_type, kind):
    """Refuse a number of instances that cannot be run.

    Args:
        kind: what the instances are for, as in `training job`.

    Raises:
        ServiceError: ResourceLimitExceeded over `MAX_HOSTS`, ValidationException under 1.
    """
    if count < 1:
        raise invalid("InstanceCount must be at least 1.")
    if count > MAX_HOSTS:
        raise ServiceError(
            "ResourceLimitExceeded",
            f"The account-level service limit '{instance_type} for {kind} usage' is {MAX_HOSTS} "
            f"Instances, with current utilization of 0 Instances and a request delta of {count} "
            "Instances. local_cloud runs all of them on this machine.",
        )


def resource_config(cluster, rank, instance_type):
    """What `resourceconfig.json` says on the host `rank` (0 for the first)."""
    return {
        "current_host": cluster.names[rank],
        "current_instance_type": instance_type,
        "current_group_name": GROUP,
        "hosts": cluster.names,
        "instance_groups": [
            {
                "instance_group_name": GROUP,
                "instance_type": instance_type,
                "hosts": cluster.names,
            }
        ],
        "network_interface_name": NETWORK_INTERFACE,
    }


def threads_each(processes, cpus=None):
    """Threads for each of `processes` that share this machine, as for OMP_NUM_THREADS.

    Args:
        cpus: how many processors they may use together; None for all.
    """
    return max(1, (cpus or os.cpu_count() or 1) // processes)


def free_port():
    """A TCP port of 127.0.0.1 that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
