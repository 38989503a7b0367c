"""A real local cloud for the whole session, started and stopped through its command line."""

import json

import pytest
from harness import BUCKET, ROLE, Cloud, command_line, processes_with

ROLE_NAME = ROLE.rpartition("/")[2]
TRUST = {
    "Effect": "Allow",
    "Principal": {"Service": "sagemaker.amazonaws.com"},
    "Action": "sts:AssumeRole",
}


@pytest.fixture(scope="session")
def cloud(tmp_path_factory):
    """One local cloud for all tests that do not stop it; nothing of it may be left at the end."""
    home = tmp_path_factory.mktemp("cloud") / "home"
    started = command_line(home, "start")
    assert started.returncode == 0, started.stderr
    cloud = Cloud(home)
    cloud.s3.create_bucket(Bucket=BUCKET)
    yield cloud
    complaints = (home / "server.log").read_text()
    stopped = command_line(home, "stop")
    assert complaints == ""  # Answers that break the service's description are among them.
    assert stopped.stdout == "local_cloud stopped.\n"
    assert [path.name for path in home.iterdir()] == ["state"]
    assert processes_with("LOCAL_CLOUD_INSTANCE", cloud.server["name"]) == []


@pytest.fixture
def own_home(tmp_path):
    """A folder for a local cloud of one test's own, stopped at the end whatever happened."""
    home = tmp_path / "home"
    yield home
    command_line(home, "reset")
    assert not home.exists()


@pytest.fixture(scope="session")
def sdk(cloud):
    """A session of the SageMaker SDK, pointed at the cloud by environment variables alone."""
    patch = pytest.MonkeyPatch()
    for name, value in cloud.env.items():
        patch.setenv(name, value)
    patch.setenv("TelemetryOptOut", "1")
    from sagemaker.core.helper.session_helper import Session

    iam = cloud.client("iam")
    iam.create_role(RoleName=ROLE_NAME, AssumeRolePolicyDocument=json.dumps(policy(TRUST)))
    everything = policy({"Effect": "Allow", "Action": "*", "Resource": "*"})
    iam.put_role_policy(RoleName=ROLE_NAME, PolicyName="all", PolicyDocument=json.dumps(everything))
    yield Session(default_bucket=BUCKET)
    patch.undo()


def policy(statement):
    return {"Version": "2012-10-17", "Statement": [statement]}
