"""Puts the web app into an AWS account, and takes it out again.

    python -m web.deploy deploy --endpoint NAME [--pictures FOLDER] [--email ADDRESS]
    python -m web.deploy remove

The endpoint exists already. Everything else is one CloudFormation stack and one bucket for the
function's package, so that removing leaves nothing. AWS's own tools do the work: pip packs the
function for Lambda's processor, `aws cloudformation` uploads it and deploys the template.
"""

import argparse
import contextlib
import functools
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError, WaiterError

from web import site

HERE = Path(__file__).resolve().parent
TEMPLATE, REQUIREMENTS = HERE / "template.yaml", HERE / "requirements.txt"
# Where template.yaml lets the function run. Amazon Linux 2023 has glibc 2.34.
VERSION = "3.12"
PLATFORM = ("--python-version", VERSION, "--implementation", "cp")
PLATFORM += ("--platform", "manylinux_2_28_aarch64", "--platform", "manylinux2014_aarch64")
DESCRIPTION = re.search(r"^Description: (.+)$", TEMPLATE.read_text(), re.MULTILINE)[1]
STACK = "photo-classifier"
TITLE = "What is on the photo?"
SAMPLES = 6
LAST_CALLS_SECONDS = 30  # More than the Timeout of the function.
PICTURES = (".jpg", ".jpeg", ".png", ".webp")
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
}
# Browsers ask each time whether their copy is still right; CloudFront answers that for a day, or
# until the next deployment tells it to forget.
CACHING = "public, max-age=0, must-revalidate, s-maxage=86400"
# On-demand prices of us-east-1; docs/web.md has the sum.
PRICE = (
    "It costs under $2 a month while nobody uses it, and about $4 for a million questions "
    "(docs/web.md has the sum). The endpoint {endpoint} is paid by the hour, as before."
)


class DeployError(Exception):
    """Why it was not deployed or removed, and the way out, in one sentence."""


def deploy(args: argparse.Namespace) -> None:
    """Create the app, or bring it up to date, after naming the price; print its address."""
    if not args.endpoint:
        raise DeployError("name the SageMaker endpoint to ask: `make web-deploy ENDPOINT=…`")
    account = Account(args.stack)
    arn, model_json = endpoint_facts(account, args.endpoint)
    pictures = sample_pictures(args.pictures) if args.pictures else []
    stack = account.stack()
    if stack is None:
        print(f"About to create the web app {args.stack} in {account.region}.")
        print(PRICE.format(endpoint=args.endpoint))
        agree("Type yes to create it: ")
    elif stack["StackStatus"] == "ROLLBACK_COMPLETE":
        raise DeployError("the first deployment failed: `make web-remove`, then deploy again")
    parameters = {
        "EndpointName": args.endpoint,
        "EndpointArn": arn,
        "ClassNames": json.dumps(model_json["class_names"], separators=(",", ":")),
    }
    if args.email:
        parameters["AlarmEmail"] = args.email
    with tempfile.TemporaryDirectory() as scratch:
        template = package(account, Path(scratch))
        account.push(template, parameters)
        outputs = account.outputs()
        # Only now there are a page and an API with an address each, which the other must know.
        origins = {"PageOrigin": outputs["PageUrl"], "ApiOrigin": outputs["ApiUrl"]}
        if not origins.items() <= account.parameters().items():
            account.push(template, {**parameters, **origins})
        folder = Path(scratch) / "site"
        site.build(
            folder,
            api=outputs["ApiUrl"],
            model_json=model_json,
            pictures=pictures,
            title=args.title,
        )
        upload(account, folder, outputs["PageBucket"])
    account.client("cloudfront").create_invalidation(
        DistributionId=outputs["DistributionId"],
        InvalidationBatch={
            "Paths": {"Quantity": 1, "Items": ["/*"]},
            "CallerReference": str(uuid.uuid4()),
        },
    )
    print(f"The page is {outputs['PageUrl']}; it may take a minute until it shows what is new.")
    print(f"Corrections arrive in s3://{outputs['CorrectionsBucket']}/corrections/.")


def remove(args: argparse.Namespace) -> None:
    """Delete the app with all that belongs to it; offer the corrections for download first."""
    account = Account(args.stack)
    resources = account.resources()
    if not resources and not account.stack() and not account.has_package_bucket():
        print(f"There is no web app {args.stack} in {account.region}.")
        return
    corrections = resources.get("CorrectionsBucket")
    count = count_objects(account, corrections)
    download = False
    if resources:
        print(f"About to delete the web app {args.stack} in {account.region}, with its logs.")
        if count:
            question = f"Download its {count} files of corrections to {args.corrections} first?"
            download = choose(f"{question} Type yes, or no to lose them: ")
        agree("Type yes to delete it: ")
    if not download and count_objects(account, corrections) > count:
        raise DeployError("corrections have arrived meanwhile: `make web-remove` again")
    if download:
        save_corrections(account, resources, args.corrections)
    for name in ("CorrectionsBucket", "PageBucket"):
        if name in resources:
            account.bucket(resources[name]).object_versions.delete()
    if account.stack():
        account.delete_stack()
    logs = account.client("logs")
    with contextlib.suppress(logs.exceptions.ResourceNotFoundException):
        # Gone with the stack, unless something wrote into it once more.
        logs.delete_log_group(logGroupName=f"/aws/lambda/{args.stack}")
    if account.has_package_bucket():
        bucket = account.bucket(account.package_bucket)
        bucket.object_versions.delete()
        bucket.delete()
    print(f"Nothing is left of the web app {args.stack} in {account.region}.")


class Account:
    """An AWS account and region, and what is in it of one stack.

    Raises:
        DeployError: no region is set, or there are no credentials.
    """

    def __init__(self, name: str):
        self.name = name
        self.session = boto3.session.Session()
        self.region = self.session.region_name
        # Making one takes longer than most of its calls.
        self.client = functools.cache(self.session.client)
        if self.region is None:
            raise DeployError("no AWS region is set: `export AWS_DEFAULT_REGION=us-east-1`, say")
        self.cloudformation = self.client("cloudformation")
        try:
            self.id = self.client("sts").get_caller_identity()["Account"]
        except (BotoCoreError, ClientError) as error:
            raise DeployError(f"no usable AWS credentials ({error}): `aws configure`") from error
        self.package_bucket = f"{name}-package-{self.id}-{self.region}"

    @functools.cached_property
    def s3(self) -> Any:
        return self.session.resource("s3")

    def bucket(self, name: str) -> Any:
        return self.s3.Bucket(name)

    def stack(self) -> dict[str, Any] | None:
        """The description of the stack, if there is one.

        Raises:
            DeployError: it is a stack of something else, which must be neither changed nor deleted.
        """
        try:
            stack = self.cloudformation.describe_stacks(StackName=self.name)["Stacks"][0]
        except ClientError as error:
            if "does not exist" in str(error):
                return None
            raise
        # One that was never deployed has no description yet.
        if stack.get("Description", DESCRIPTION) != DESCRIPTION:
            raise DeployError(f"the stack {self.name} is of something else: choose another STACK")
        return stack

    def outputs(self) -> dict[str, str]:
        return {o["OutputKey"]: o["OutputValue"] for o in self.stack()["Outputs"]}

    def parameters(self) -> dict[str, str]:
        return {p["ParameterKey"]: p["ParameterValue"] for p in self.stack()["Parameters"]}

    def resources(self) -> dict[str, str]:
        """Physical names of what the stack has, by their names in the template."""
        if self.stack() is None:
            return {}
        pages = self.cloudformation.get_paginator("list_stack_resources").paginate(
            StackName=self.name
        )
        return {
            resource["LogicalResourceId"]: resource["PhysicalResourceId"]
            for page in pages
            for resource in page["StackResourceSummaries"]
            if resource.get("PhysicalResourceId")
            and resource["ResourceStatus"] != "DELETE_COMPLETE"
        }

    def push(self, template: Path, parameters: dict[str, str]) -> None:
        """Create or update the stack; parameters that are not given stay as they are."""
        arguments = ["--stack-name", self.name, "--template-file", str(template)]
        arguments += ["--capabilities", "CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"]
        arguments += ["--no-fail-on-empty-changeset", "--parameter-overrides"]
        arguments += [f"{name}={value}" for name, value in parameters.items()]
        if self.aws("cloudformation", "deploy", *arguments).returncode:
            raise DeployError(f"the stack {self.name} was not deployed: {self.failure()}")

    def failure(self) -> str:
        """Why the stack's latest change failed, in CloudFormation's words."""
        try:
            events = self.cloudformation.describe_stack_events(StackName=self.name)["StackEvents"]
        except ClientError:
            return "see above"
        begun = [f"{what}_IN_PROGRESS" for what in ("CREATE", "UPDATE", "DELETE")]
        starts = [
            place
            for place, event in enumerate(events)
            if event["LogicalResourceId"] == self.name and event["ResourceStatus"] in begun
        ]
        # The newest event comes first; what is before the latest change is not about it.
        latest = events[: starts[0] + 1] if starts else events
        failed = [e for e in latest if e["ResourceStatus"].endswith("_FAILED")]
        reasons = [e["ResourceStatusReason"] for e in failed if "ResourceStatusReason" in e]
        # The first failure is the cause, the others follow from it.
        return next((r for r in reversed(reasons) if "cancelled" not in r), "see above")

    def delete_stack(self) -> None:
        print("Deleting; CloudFront takes some minutes to let go of the page.")
        self.cloudformation.delete_stack(StackName=self.name)
        try:
            self.cloudformation.get_waiter("stack_delete_complete").wait(StackName=self.name)
        except WaiterError as error:
            raise DeployError(
                f"the stack {self.name} is not gone yet ({self.failure()}): `make web-remove` again"
            ) from error

    def has_package_bucket(self) -> bool:
        """Whether the bucket exists; one of another account with that name is refused."""
        try:
            self.client("s3").head_bucket(Bucket=self.package_bucket, ExpectedBucketOwner=self.id)
        except ClientError as error:
            if error.response["Error"]["Code"] != "404":
                raise DeployError(f"the bucket {self.package_bucket} cannot be used") from error
            return False
        return True

    def make_package_bucket(self) -> None:
        if not self.has_package_bucket():
            place = {"LocationConstraint": self.region}
            # us-east-1 is the one region that must not be named as a location.
            options = {} if self.region == "us-east-1" else {"CreateBucketConfiguration": place}
            self.client("s3").create_bucket(Bucket=self.package_bucket, **options)

    def aws(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess:
        """Run the AWS command line of this environment; what it says goes to the terminal."""
        command = [sys.executable, "-m", "awscli", *arguments, "--region", self.region]
        return subprocess.run(command, check=False, **options)


def endpoint_facts(account: Account, name: str) -> tuple[str, dict[str, Any]]:
    """The ARN of an endpoint, and the model.json of the model that it serves."""
    sagemaker = account.client("sagemaker")
    try:
        endpoint = sagemaker.describe_endpoint(EndpointName=name)
        config = sagemaker.describe_endpoint_config(
            EndpointConfigName=endpoint["EndpointConfigName"]
        )
        variant = config["ProductionVariants"][0]
        model = sagemaker.describe_model(ModelName=variant["ModelName"])
        container = model.get("PrimaryContainer") or model["Containers"][0]
        bucket, _, key = container["ModelDataUrl"].removeprefix("s3://").partition("/")
        with tempfile.NamedTemporaryFile(suffix=".tar.gz") as archive:
            account.bucket(bucket).download_fileobj(key, archive)
            archive.seek(0)
            return endpoint["EndpointArn"], read_model_json(archive)
    except (ClientError, KeyError, tarfile.TarError, ValueError) as error:
        raise DeployError(
            f"the endpoint {name!r} of {account.region} cannot be used ({error}): name one that "
            "serves a model of this project, `make web-deploy ENDPOINT=…`"
        ) from error


def read_model_json(archive: Any) -> dict[str, Any]:
    """The model.json inside a model.tar.gz, of which nothing else is unpacked."""
    with tarfile.open(fileobj=archive) as tar:
        for member in tar:
            if posixpath.normpath(member.name) == "model.json" and member.isfile():
                return json.loads(tar.extractfile(member).read())
    raise ValueError("its archive has no model.json")


def sample_pictures(folder: str) -> list[Path]:
    """The first picture of each class folder, SAMPLES of them at most."""
    classes = sorted(path for path in Path(folder).iterdir() if path.is_dir())
    pictures = [sorted(f for f in c.iterdir() if f.suffix.lower() in PICTURES) for c in classes]
    return [found[0] for found in pictures if found][:SAMPLES]


def package(account: Account, scratch: Path) -> Path:
    """Upload the function with its libraries; return the template that names the upload."""
    folder = scratch / "function"
    collect(folder)
    # CodeUri is relative to the template.
    template = Path(shutil.copy(TEMPLATE, folder))
    account.make_package_bucket()
    packaged = scratch / "packaged.yaml"
    arguments = ["--template-file", str(template), "--output-template-file", str(packaged)]
    arguments += ["--s3-bucket", account.package_bucket]
    # Its advice, to deploy what it has packaged, is taken later.
    done = account.aws("cloudformation", "package", *arguments, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise DeployError("the function's package was not uploaded: see above")
    return packaged


def collect(folder: Path) -> None:
    """Write function.py and the pinned libraries, in Lambda's wheels, into `folder`."""
    folder.mkdir()
    shutil.copy(HERE / "function.py", folder)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--target", str(folder), "--requirement", str(REQUIREMENTS), *PLATFORM]
    command += ["--only-binary", ":all:", "--require-hashes", "--no-compile"]
    if subprocess.run(command, check=False).returncode:
        raise DeployError("the function's libraries were not downloaded: see above")
    # Lambda cannot keep bytecode: what is not compiled here is compiled at every cold start. The
    # bytecode is not compared with the sources, whose dates do not survive the packaging.
    python = shutil.which(f"python{VERSION}")
    compile_all = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", str(folder)]
    if not python or subprocess.run([python, *compile_all], check=False).returncode:
        print(f"There is no python{VERSION} to compile with: cold starts take longer.")


def upload(account: Account, folder: Path, bucket: str) -> None:
    """Make the bucket hold the site and nothing else; what names other files comes last."""
    last = ("site.json", "index.html")
    files = {f.relative_to(folder).as_posix(): f for f in folder.rglob("*") if f.is_file()}
    for key in sorted(files, key=lambda key: (key in last and 1 + last.index(key), key)):
        options = {"ContentType": CONTENT_TYPES[files[key].suffix], "CacheControl": CACHING}
        account.bucket(bucket).upload_file(str(files[key]), key, ExtraArgs=options)
    for stale in account.bucket(bucket).objects.all():
        if stale.key not in files:
            stale.delete()


def count_objects(account: Account, bucket: str | None) -> int:
    return len(list(account.bucket(bucket).objects.all())) if bucket else 0


def save_corrections(account: Account, resources: dict[str, str], folder: str) -> None:
    """Copy all corrections into a folder, once nothing can add to them any more."""
    functions = account.client("lambda")
    name = resources.get("ClassifyFunction")
    if name:
        functions.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=0)
    try:
        if name:
            # Those that run already may still write until their time is over.
            time.sleep(LAST_CALLS_SECONDS)
        target = Path(folder).resolve()
        for item in account.bucket(resources["CorrectionsBucket"]).objects.all():
            path = (target / item.key).resolve()
            if not path.is_relative_to(target):
                raise DeployError(f"the key {item.key!r} leads out of {folder}: nothing is deleted")
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}-{os.getpid()}")
            item.Object().download_file(str(partial))
            partial.replace(path)
    except BaseException:
        if name:
            functions.delete_function_concurrency(FunctionName=name)
        raise
    print(f"The corrections are in {folder}.")


def agree(question: str) -> None:
    """Go on only after an explicit yes."""
    if input(question).strip().lower() != "yes":
        raise DeployError("the answer was not yes: nothing was changed")


def choose(question: str) -> bool:
    """The answer to a question that must be answered by yes or no."""
    answer = input(question).strip().lower()
    if answer not in ("yes", "no"):
        raise DeployError("the answer was neither yes nor no: nothing was changed")
    return answer == "yes"


def stack_name(text: str) -> str:
    # It becomes a part of a bucket's name, which has 63 characters at most.
    if not re.fullmatch("[a-z][a-z0-9-]{0,26}", text):
        raise argparse.ArgumentTypeError("1 to 27 of a-z, 0-9 and -, beginning with a letter")
    return text


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m web.deploy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    up = commands.add_parser("deploy", help="create the web app, or bring it up to date")
    up.set_defaults(run=deploy)
    up.add_argument("--endpoint", required=True, help="name of the SageMaker endpoint to ask")
    up.add_argument("--pictures", help="folder with one sub-folder a class, for the samples")
    up.add_argument("--email", help="address that hears of alarms")
    up.add_argument("--title", default=TITLE, help="heading of the page")
    down = commands.add_parser("remove", help="delete the web app with all that belongs to it")
    down.set_defaults(run=remove)
    down.add_argument(
        "--corrections", default="build/corrections", help="where to download corrections to"
    )
    for command in (up, down):
        command.add_argument("--stack", type=stack_name, default=STACK, help="its name")
    return parser


def main(arguments: list[str] | None = None) -> int:
    args = get_args_parser().parse_args(arguments)
    try:
        args.run(args)
    except (DeployError, BotoCoreError, ClientError, OSError, ValueError) as error:
        print(f"web.deploy: {error}", file=sys.stderr)
        return 1
    except (EOFError, KeyboardInterrupt):
        print("web.deploy: interrupted; the same command goes on from here", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
