"""Writes docs/local_cloud.md: what the local cloud offers, and what differs from AWS.

    python -m local_cloud.reference > docs/local_cloud.md

Limits are read from the code that keeps them, operations from `offered`, and the jobs tried from
docs/jobs_tried.md, which people write.
"""

import textwrap
from pathlib import Path

from local_cloud import (
    ACCOUNT_ID,
    asynchronous,
    aws,
    cluster,
    container,
    functions,
    gateway,
    hosting,
    http_api,
    iam,
    images,
    invocation,
    server,
    serving,
    signature,
    transform,
)
from local_cloud.offered import SECTIONS

JOBS_TRIED = Path(__file__).resolve().parent.parent / "docs" / "jobs_tried.md"
MIB = 1 << 20
WIDTH = 100  # Characters of a line of prose.
HEAD = """\
# What the local cloud offers, and what differs from AWS

<!-- Written by `python -m local_cloud.reference > docs/local_cloud.md`. Do not edit: change
     local_cloud/offered.py, local_cloud/reference.py or docs/jobs_tried.md and write it again. -->

`python -m local_cloud start` runs one server on this machine. Unmodified clients (SageMaker Python
SDK 3, boto3, the AWS CLI) talk to it once the variables of `python -m local_cloud env` are set.
Training, tuning, processing and transform jobs and endpoints are really carried out, by processes
in place of containers. This page says what of the API is offered, what is kept of each request, and
what happens otherwise than on AWS.

Requests are checked against the API's own description, the one that boto3 brings: types, bounds,
patterns and required members. What is listed under *Refused* is answered with a
`ValidationException` that says why, before anything is created. Members that this page does not
name are checked, kept and described, and change nothing. Every other operation is answered with
`UnknownOperationException`.
"""
RULES = """\
**Who may ask.** The server listens on 127.0.0.1 only. Every request must carry an AWS signature
(version 4) made with the keys of this start, which `env` prints and only this user can read; the
signed time may differ by {skew:g} minutes. Presigned addresses of S3 are answered until they
expire. STS gives these same keys for a role or a session, and they end with this start. There is
one account, {account}, and any region.

**Other services.** S3, IAM, STS and CloudWatch Logs are answered by moto. Every caller has assumed
the role `{role}`, which may do everything; so the SDK finds a role where a call names none, and
`SAGEMAKER_USER_CONFIG_OVERRIDE` tells it the default bucket, because it would ask AWS's own address
for the account. `get_execution_role()` and `Session().account_id()` still do.

**No sandbox.** Jobs and endpoints run as you, with your rights on this machine and your network.
Run only code that you would run by hand.

**Images are names.** A job's script runs with this machine's Python, whatever the image is called.
`pip install` in a job writes into the job's own folder. Built-in algorithms, whose program is
inside the image, are refused; `${map}` can name a JSON file that maps an image to a command that
runs in its place.

**`{opt_ml}` is rewritten.** Every host of a job has a folder of its own that stands for `{opt_ml}`.
The prefix is replaced wherever the request or the submitted code spells it out: in commands,
arguments, environment values, configuration files and the text files of the code ({suffixes}, and
scripts that begin with `#!`). Log lines and failure reasons show `{opt_ml}` again. Not replaced:
paths that the code puts together while it runs, data channels, binaries, installed packages, and
code that the job downloads itself.

**Host names.** The hosts of a job are called 127.0.0.1, 127.0.0.2, … instead of algo-1, algo-2, …,
because these resolve to this machine without a network of containers. They share its processors.

**State.** Jobs, models, endpoints, objects, roles and logs survive `stop` and `start`; endpoints
serve again, and jobs that ran are marked as failed. `python -m local_cloud reset` forgets all.
"""

GATEWAY = """\
`python -m local_cloud gateway --template template.yaml --site folder` serves a web page and the API
behind it until Ctrl-C: what CloudFront, API Gateway and Lambda do in an account for a template of
AWS SAM. `--help` lists what else can be said. From Python it is
`local_cloud.gateway.gateway(template, …)`.

**Read from the template.** One function (`AWS::Serverless::Function`, Python): `Handler`,
`CodeUri`, `Timeout`, `MemorySize` (told to the handler, not enforced), `Environment`, its events of
the type `HttpApi`, `Globals`; of the API `CorsConfiguration`, `DefaultRouteSettings` and
`RouteSettings`; the headers that the distribution's response headers policy adds to the page.
`Ref`, `GetAtt`, `Sub`, `Join`, `If`, `Select`, `Split` and `FindInMap` are resolved where one of
these needs them. `--parameter NAME=VALUE` gives the value of a parameter, of `AWS::StackName` and
its like, and of `Resource` or `Resource.Attribute`; `{{page_url}}` and `{{api_url}}` in it stand
for the two addresses. `--env NAME=VALUE` sets a variable of the function.

**Events and answers** are those of payload format 2.0. A body is text for `text/*`, {texts}, and
base64 for all other types. The routes, preflight requests, CORS headers, throttling by a token
bucket for each route (429) and the limits are the service's; it answers 404 where no route fits,
500 where the handler raises, ends its process or exceeds its timeout, 503 where there is no result
after {integration} s, the wait for a free worker included. A handler that takes too long is killed
in both cases. Not carried out: authorizers, stages, custom domains, parameter mapping.

**The handler** runs in worker processes, one request at a time in each; they are started when they
are needed, at most {workers}, one after the other, and kept. They see the variables that the
template declares, those that Lambda sets, and the address and keys of the running local cloud;
nothing else of this machine's environment, and no account's credentials. They are no sandbox. What
it prints is in CloudWatch Logs under `/aws/lambda/<function>`, with Lambda's own lines around it,
or on standard error where no local cloud runs. However the gateway ends, its workers end with it.

**Who may ask.** Both servers listen on 127.0.0.1 only and answer requests for `127.0.0.1:<port>`
and `localhost:<port>` alone (403); the page sends the latter on to the former, whose origin the API
knows. The page is served from its folder as it is at that moment: no
lists of folders, and nothing that a link leads to outside of it.

| limit | here |
| --- | --- |
| body of a request | {body} MiB |
| event and result of a handler | {payload:,} bytes |
| import of a handler's module | {start} s |
"""


def page():
    """The whole page as Markdown."""
    parts = [HEAD, rules()]
    for title, _, operations in SECTIONS:
        parts.append(section(title, operations))
    parts.append(gateway_section())
    parts.append(JOBS_TRIED.read_text())
    return "\n".join(parts)


def rules():
    """The section that holds for all operations, with the numbers of the code."""
    text = RULES.format(
        skew=signature.MAX_SKEW.total_seconds() / 60,
        account=ACCOUNT_ID,
        role=iam.ROLE,
        map=images.MAP,
        opt_ml=container.OPT_ML,
        suffixes=", ".join(f"`{suffix}`" for suffix in container.TEXT_SUFFIXES),
    )
    table = ["| limit | here |", "| --- | --- |"]
    table += [f"| {name} | {value} |" for name, value in limits()]
    return "\n\n".join(["## Rules for everything", filled(text), "\n".join(table)]) + "\n"


def filled(text):
    """Paragraphs with new line breaks, tables as they are."""
    parts = text.split("\n\n")
    return "\n\n".join(
        part if part.startswith("|") else textwrap.fill(part, WIDTH, break_on_hyphens=False)
        for part in parts
    )


def gateway_section():
    """The section on pages, HTTP APIs and functions."""
    text = GATEWAY.format(
        texts=", ".join(f"`{name}`" for name in http_api.TEXTS),
        integration=http_api.INTEGRATION_SECONDS,
        workers=gateway.CONCURRENCY,
        body=http_api.MAX_BODY // MIB,
        payload=functions.MAX_PAYLOAD,
        start=functions.START_SECONDS,
    )
    return f"## A page, its API and its function\n\n{filled(text)}"


def limits():
    """Pairs of what is limited and the limit."""
    return [
        ("body of any request", f"{server.MAX_BODY // MIB} MiB"),
        ("body of InvokeEndpoint", f"{invocation.MAX_BODY:,} bytes"),
        ("body of InvokeEndpoint, serverless", f"{invocation.MAX_SERVERLESS_BODY // MIB} MiB"),
        ("payload inside InvokeEndpointAsync", f"{invocation.MAX_ASYNC_BODY:,} bytes"),
        ("answer to an asynchronous request", f"{asynchronous.TIMEOUT} s unless it says otherwise"),
        ("hosts of a training or processing job", cluster.MAX_HOSTS),
        ("instances of an endpoint", hosting.MAX_INSTANCES),
        ("instances of a transform job", transform.MAX_INSTANCES),
        ("start of a model server", f"{serving.STARTUP_TIMEOUT} s until its first ping"),
        ("from SIGTERM to SIGKILL", f"{container.STOP_GRACE:g} s"),
        ("what an archive may unpack to", f"{aws.MAX_UNPACKED // (1 << 30)} GiB"),
    ]


def section(title, operations):
    """The operations of one kind: a table of all, then the details of those that have any."""
    lines = [f"## {title}", "", "| operation | what it does here |", "| --- | --- |"]
    lines += [f"| `{name}` | {operation.does} |" for name, operation in operations.items()]
    lines.append("")
    for name, operation in operations.items():
        lines += details(name, operation)
    return "\n".join(lines)


def details(name, operation):
    """What is kept of one operation's request, as lines; none where all of it is."""
    groups = [
        ("Carried out", grouped(operation.uses)),
        ("Checked, kept and described, without effect", grouped(operation.ignores)),
        ("Refused", " ".join(operation.refuses)),
        ("Differs from AWS", " ".join(operation.differs)),
    ]
    lines = [f"- **{label}**: {words}" for label, words in groups if words]
    return [f"### {name}", "", *lines, ""] if lines else []


def grouped(members):
    """Members as text: those of the request itself first, then those of each of its parts."""
    parts = {"": []}
    for member in members:
        parent, _, last = member.rpartition(".")
        parts.setdefault(parent, []).append(f"`{last}`")
    words = [", ".join(parts.pop(""))]
    words += [f"of `{parent}` {', '.join(names)}" for parent, names in parts.items()]
    return "; ".join(filter(None, words))


if __name__ == "__main__":
    print(page(), end="")
