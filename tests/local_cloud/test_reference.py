"""docs/local_cloud.md says what the server does: every operation, no other, existing members."""

import ast
import functools
import os
import subprocess
import sys

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from harness import PROJECT

from local_cloud.offered import SECTIONS, Operation, members

PAGE = PROJECT / "docs" / "local_cloud.md"
OPERATIONS = [
    pytest.param(service, name, operation, id=name)
    for _, service, operations in SECTIONS
    for name, operation in operations.items()
]
# Of the request's address or headers, which have other names in the code than in the API.
ON_THE_WIRE = {"EndpointName", "Body"}


def test_the_committed_page_is_the_generated_one():
    env = {name: value for name, value in os.environ.items() if not name.startswith("LOCAL_CLOUD")}
    command = [sys.executable, "-m", "local_cloud.reference"]
    made = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=60)
    assert made.returncode == 0, made.stderr
    assert PAGE.read_text() == made.stdout, "write it again: python -m local_cloud.reference"


def test_the_server_offers_what_the_page_lists_and_nothing_else(cloud):
    """Asks for every operation that botocore knows, without any parameters."""
    config = Config(parameter_validation=False, retries={"total_max_attempts": 1})
    client = cloud.client("sagemaker", config=config)
    offered = {name for name in client.meta.service_model.operation_names if answers(client, name)}
    assert offered == {name for _, kind, names in SECTIONS if kind == "sagemaker" for name in names}


def answers(client, operation):
    """Whether the server knows an operation, however it likes the empty request."""
    try:
        client._make_api_call(operation, {})
    except ClientError as error:
        return error.response["Error"]["Code"] != "UnknownOperationException"
    return True


@functools.cache
def model_of(service):
    return botocore.session.get_session().get_service_model(service)


@pytest.mark.parametrize(("service", "name", "operation"), OPERATIONS)
def test_members_are_the_apis_own(service, name, operation):
    shape = model_of(service).operation_model(name).input_shape
    unknown = [m for m in operation.uses + operation.ignores if not exists(shape, m)]
    assert unknown == []
    assert len(set(operation.uses + operation.ignores)) == len(operation.uses + operation.ignores)


def exists(shape, path):
    """Whether a dotted path leads through a shape, lists left out."""
    for name in path.split("."):
        while shape.type_name == "list":
            shape = shape.member
        if shape.type_name != "structure" or name not in shape.members:
            return False
        shape = shape.members[name]
    return True


def test_members_that_are_carried_out_occur_in_the_code():
    words = words_of_the_code()
    named = {
        member.rpartition(".")[2]
        for _, service, operations in SECTIONS
        for operation in operations.values()
        for member in operation.uses
        if service == "sagemaker"
    }
    assert named - words - ON_THE_WIRE == set()


def words_of_the_code():
    """All string constants and argument names of the package, but for the page's own words."""
    found = set()
    for path in (PROJECT / "local_cloud").glob("*.py"):
        if path.name in ("offered.py", "reference.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
            elif isinstance(node, ast.keyword):
                found.add(node.arg)
    return found


def test_members_spells_braces_out():
    assert members("A.{B C} D\n  E.F.{G}") == ("A.B", "A.C", "D", "E.F.G")


def test_an_operation_without_details_is_one_line_of_a_table():
    from local_cloud.reference import section

    text = section("Things", {"MakeThing": Operation("Makes it."), "Use": Operation("U", ("A",))})
    assert "| `MakeThing` | Makes it. |" in text
    assert "### MakeThing" not in text
    assert "### Use\n\n- **Carried out**: `A`\n" in text
