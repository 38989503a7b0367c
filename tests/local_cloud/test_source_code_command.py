"""Jobs whose code is a command line instead of an entry script: `SourceCode(command=...)`."""

import pytest
from harness import ROLE

from local_cloud.jobs import script_lines


def trainer(sdk, command, name):
    from sagemaker.core.training.configs import Compute, SourceCode
    from sagemaker.train.model_trainer import ModelTrainer

    return ModelTrainer(
        training_image="any/image:1",
        source_code=SourceCode(command=command),
        compute=Compute(instance_type="ml.m5.large", instance_count=1),
        base_job_name=name,
        role=ROLE,
        sagemaker_session=sdk,
    )


def test_the_reason_for_a_failure_is_what_the_command_said(sdk, cloud):
    """Not the lines of the SDK's own script around it, which says every command aloud."""
    failing = trainer(sdk, "echo first; echo 'no such picture' >&2; exit 3", "failing-command")
    with pytest.raises(Exception, match="no such picture"):
        failing.train(logs=False)
    name = failing._latest_training_job.training_job_name
    description = cloud.sagemaker.describe_training_job(TrainingJobName=name)
    assert description["FailureReason"] == "AlgorithmError: first\nno such picture, exit code: 3"


def test_lines_of_the_drivers_are_not_the_scripts():
    lines = [
        "Setting up",
        "Executing command: python main.py",
        "++ eval 'python main.py'",
        "+++ python main.py",
        "",
        "+1 is not a trace",
        "Traceback",
        "++++ handle_error",
        "An error occurred with exit code 1",
        "++++ exit 1",
    ]
    assert script_lines(lines) == ["+1 is not a trace", "Traceback"]
