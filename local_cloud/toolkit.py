"""The older contract for code: what the sagemaker-training toolkit does inside AWS's images.

The hyperparameter `sagemaker_program` names the script and `sagemaker_submit_directory` the code:
an archive in S3, or an archive or a folder in the container, as in a channel. Hyperparameters
become arguments, and `SM_*` variables describe the job. Source: the toolkit's README and code,
https://github.com/aws/sagemaker-training-toolkit.
"""

import json
import shlex
import shutil
from pathlib import Path

from local_cloud.aws import unpack
from local_cloud.cluster import GROUP
from local_cloud.errors import JobFailed, invalid
from local_cloud.requirements import are_installed

PROGRAM, SUBMITTED = "sagemaker_program", "sagemaker_submit_directory"
TORCHRUN = "sagemaker_torch_distributed_enabled"
# Launchers that are inside AWS's images only, or need a shell server on every host.
REFUSED = (
    "sagemaker_mpi_enabled",
    "sagemaker_parameter_server_enabled",
    "sagemaker_distributed_dataparallel_enabled",
    "sagemaker_multi_worker_mirrored_strategy_enabled",
    "sagemaker_pytorch_ddp_enabled",
    "sagemaker_pytorch_xla_multi_worker_enabled",
)
# The toolkit's own settings; what else begins with `sagemaker_` is for the framework.
SETTINGS = (PROGRAM, SUBMITTED, "sagemaker_enable_cloudwatch_metrics", "sagemaker_region")
SETTINGS += ("sagemaker_container_log_level", "sagemaker_job_name", "sagemaker_s3_output")
TUNING_METRIC = "_tuning_objective_metric"  # A setting, too, though it is named otherwise.
INFO = 20  # Of Python's logging: the toolkit's default level.
# The machine's own setuptools builds the package, so that nothing has to be downloaded for that.
INSTALL_PACKAGE = "python3 -m pip install --no-build-isolation ."
INSTALL_REQUIREMENTS = "python3 -m pip install -r requirements.txt"


def decoded(hyperparameters):
    """Hyperparameters as values: the SDK sends JSON inside strings, people send plain strings."""
    values = {}
    for key, text in hyperparameters.items():
        try:
            values[key] = json.loads(text)
        except ValueError:
            values[key] = text
    return values


def own_hyperparameters(hyperparameters):
    """Those that are meant for the script."""
    return {
        key: value
        for key, value in hyperparameters.items()
        if not key.startswith("sagemaker_") and key != TUNING_METRIC
    }


def check_launcher(hyperparameters):
    """Refuse a distributed launcher that is not offered here."""
    values = decoded(hyperparameters)
    for name in REFUSED:
        if values.get(name) is True:
            raise invalid(
                f"local_cloud does not offer the launcher of {name}; it offers torchrun "
                f"({TORCHRUN}), and plain scripts on every host."
            )


def arguments(hyperparameters):
    """Command-line arguments as the toolkit's `mapping.to_cmd_args` makes them."""
    words = []
    for name, value in sorted(hyperparameters.items()):
        if isinstance(value, dict):
            value = ",".join(f"{k}={v}" for k, v in sorted(value.items()))
        # One dash before a single letter; `True`, where the SDK's drivers say `true`.
        words += [f"--{name}" if len(name) > 1 else f"-{name}"]
        words += ["" if value is None else str(value)]
    return words


def fetch_code(aws, container, hyperparameters):
    """Lay the submitted code out in `/opt/ml/code` and return that folder.

    Raises:
        JobFailed: it is not there, or it is no archive.
    """
    code = container.ml / "code"
    code.mkdir(exist_ok=True)
    submitted = hyperparameters.get(SUBMITTED)
    if submitted is None:
        return code
    if str(submitted).startswith("s3://"):
        aws.download_archive(submitted, code, container.root / ".download")
    else:
        copy_code(Path(container.localize(str(submitted))), code, submitted)
    container.localize_scripts(code)
    return code


def copy_code(source, code, name):
    """Copy a folder, an archive or a script of the container to the folder of the code."""
    if source.is_dir():
        shutil.copytree(source, code, dirs_exist_ok=True)
    elif source.name.endswith((".tar.gz", ".tgz")) and source.is_file():
        unpack(source, code)
    elif source.is_file():
        shutil.copy(source, code)
    else:
        raise JobFailed(f"ClientError: the code {name!r} is neither in S3 nor in a channel.")


def processes_each(hyperparameters, gpus):
    """The processes that the toolkit starts on a host: torchrun one a GPU, otherwise one."""
    return max(1, gpus) if hyperparameters.get(TORCHRUN) is True else 1


def command(code, hyperparameters, rank, hosts, master_port, processes):
    """The command that runs the program, with the installation of what it needs before it.

    Args:
        code: folder of the code.
        rank: number of this host, from 0.
        hosts: names of all hosts.
        master_port: where torchrun's processes meet on the first host.
        processes: how many of them torchrun starts on a host.

    Raises:
        JobFailed: the program is not in the code, or torchrun cannot start it.
    """
    program = str(hyperparameters[PROGRAM])
    words = arguments(own_hyperparameters(hyperparameters))
    is_package = not program.endswith(".sh") and (code / "setup.py").is_file()
    if not is_package:
        check_program(code, program, hyperparameters.get(SUBMITTED))
    if hyperparameters.get(TORCHRUN) is True:
        if is_package or not program.endswith(".py"):
            raise JobFailed(f"ClientError: torchrun starts a Python script, not {program!r}.")
        run = [*torchrun(rank, hosts, master_port, processes), program, *words]
    elif is_package:
        run = ["python3", "-m", program.removesuffix(".py"), *words]
    elif program.endswith(".py"):
        run = ["python3", program, *words]
    else:
        (code / program).chmod(0o755)
        return ["/bin/sh", "-c", shlex.join([f"./{program}", *words])]
    steps = []
    if is_package:
        steps.append(INSTALL_PACKAGE)
    requirements = code / "requirements.txt"
    if requirements.is_file() and not are_installed(requirements):
        steps.append(INSTALL_REQUIREMENTS)
    if not steps:
        return run
    return ["/bin/sh", "-c", " && ".join([*steps, 'exec "$@"']), "sh", *run]


def check_program(code, program, submitted):
    path = (code / program).resolve()
    if not path.is_relative_to(code.resolve()):
        raise JobFailed(f"AlgorithmError: {program!r} is outside the submitted code.")
    if not path.is_file():
        raise JobFailed(f"AlgorithmError: {program!r} is not in {submitted!r}.")


def torchrun(rank, hosts, master_port, processes):
    """The beginning of a command that starts the program's processes on one host."""
    words = ["torchrun", f"--nnodes={len(hosts)}", f"--nproc_per_node={processes}"]
    words += [f"--master_addr={hosts[0]}", f"--master_port={master_port}"]
    return [*words, f"--node_rank={rank}"]


def environment(container, hyperparameters, resources, channels, cpus, gpus, job_name):
    """The `SM_*` variables of one host.

    Args:
        hyperparameters: all of the job, decoded.
        resources: what its `resourceconfig.json` says.
        channels: what its `inputdataconfig.json` says.
        cpus: processors that the job may use.
        gpus: GPUs of this machine.
    """
    described = training_env(container, hyperparameters, resources, channels, cpus, gpus, job_name)
    own = described["hyperparameters"]
    named = {
        "hosts": described["hosts"],
        "network_interface_name": described["network_interface_name"],
        "hps": own,
        "user_entry_point": described["user_entry_point"],
        "framework_params": described["additional_framework_parameters"],
        "channels": sorted(channels),
        "training_env": described,
        "user_args": arguments(own),
    }
    same = ("resource_config", "input_data_config", "output_data_dir", "current_host")
    same += ("current_instance_type", "current_instance_group", "current_instance_group_hosts")
    same += ("instance_groups", "instance_groups_dict", "distribution_instance_groups", "is_hetero")
    same += ("module_name", "log_level", "framework_module", "input_dir", "input_config_dir")
    same += ("output_dir", "num_cpus", "num_gpus", "num_neurons", "model_dir", "module_dir")
    same += ("output_intermediate_dir",)
    named.update({name: described[name] for name in same})
    named.update({f"channel_{k}": path for k, path in described["channel_input_dirs"].items()})
    for key, value in own.items():
        named[f"hp_{key}"] = value
        # The toolkit keeps dashes, which no shell can read; SDK 3's drivers have underscores.
        named[f"hp_{key.replace('-', '_')}"] = value
    return {f"SM_{name.upper()}": as_text(value) for name, value in named.items()}


def training_env(container, hyperparameters, resources, channels, cpus, gpus, job_name):
    """The description of the job that scripts read from `SM_TRAINING_ENV`."""
    ml = container.ml
    hosts, program = resources["hosts"], str(hyperparameters[PROGRAM])
    framework = {
        key: value
        for key, value in hyperparameters.items()
        if key.startswith("sagemaker_") and key not in SETTINGS
    }
    distributed = [GROUP] if hyperparameters.get(TORCHRUN) is True else []
    return {
        "additional_framework_parameters": framework,
        "channel_input_dirs": {name: str(ml / "input" / "data" / name) for name in channels},
        "current_host": resources["current_host"],
        "current_instance_group": GROUP,
        "current_instance_group_hosts": hosts,
        "current_instance_type": resources["current_instance_type"],
        "distribution_hosts": hosts if distributed else [],
        "distribution_instance_groups": distributed,
        "framework_module": None,
        "hosts": hosts,
        "hyperparameters": own_hyperparameters(hyperparameters),
        "input_config_dir": str(ml / "input" / "config"),
        "input_data_config": channels,
        "input_dir": str(ml / "input"),
        "instance_groups": [GROUP],
        "instance_groups_dict": {GROUP: resources["instance_groups"][0]},
        "is_hetero": False,
        "is_master": resources["current_host"] == hosts[0],
        "is_modelparallel_enabled": None,
        "is_smddpmprun_installed": False,
        "is_smddprun_installed": False,
        "job_name": job_name,
        "log_level": hyperparameters.get("sagemaker_container_log_level", INFO),
        "master_hostname": hosts[0],
        "model_dir": str(ml / "model"),
        "module_dir": str(hyperparameters.get(SUBMITTED, ml / "code")),
        "module_name": program.removesuffix(".py"),
        "network_interface_name": resources["network_interface_name"],
        "num_cpus": cpus,
        "num_gpus": gpus,
        "num_neurons": 0,
        "output_data_dir": str(ml / "output" / "data"),
        "output_dir": str(ml / "output"),
        "output_intermediate_dir": str(ml / "output" / "intermediate"),
        "resource_config": resources,
        "topology": [],
        "user_entry_point": program,
    }


def as_text(value):
    """A value as the toolkit writes it into a variable."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
