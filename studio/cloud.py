"""Where the course runs: this machine, or an AWS account.

The notebook's cells use the SageMaker SDK in the same words for both; `connect` only decides which
address those words go to, and finds or makes the bucket and the role that the SDK needs.
"""

import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

ROOT = Path(__file__).resolve().parent.parent
ROLE_NAME = "image-classifier-course"
# The newest version that AWS offers for training and inference alike.
PYTORCH_VERSION, PYTHON_VERSION = "2.6.0", "py312"
TRAINING_INSTANCE, PROCESSING_INSTANCE, HOSTING_INSTANCE = (
    "ml.g4dn.xlarge",
    "ml.m5.xlarge",
    "ml.m5.large",
)
NETWORK_ACTIONS = (
    "CreateNetworkInterface",
    "CreateNetworkInterfacePermission",
    "DeleteNetworkInterface",
    "DeleteNetworkInterfacePermission",
    "DescribeDhcpOptions",
    "DescribeNetworkInterfaces",
    "DescribeSecurityGroups",
    "DescribeSubnets",
    "DescribeVpcs",
)
# The SDK reports its use to AWS unless told not to.
NO_TELEMETRY = {
    "SchemaVersion": "1.0",
    "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}},
}


class CloudError(Exception):
    """What keeps the course from running there, and the way out, in one sentence."""


@dataclass(frozen=True)
class Cloud:
    """What the cells need to know of the place where they run.

    Attributes:
        where: "local" or "aws".
        session: the SageMaker SDK's session.
        role: ARN of the role that jobs and endpoints run with.
        bucket: bucket of this project.
        run: name of this run; everything it makes carries it as a prefix.
        training_image, processing_image, inference_image: container images; names only when local.
    """

    where: str
    session: object
    role: str
    bucket: str
    region: str
    run: str
    training_image: str
    processing_image: str
    inference_image: str
    training_instance: str = TRAINING_INSTANCE
    processing_instance: str = PROCESSING_INSTANCE
    hosting_instance: str = HOSTING_INSTANCE

    @property
    def is_local(self):
        return self.where == "local"

    @property
    def prefix(self):
        """What the key of every object of this run begins with; the SDK's own uploads do, too."""
        return self.run

    def s3_uri(self, *parts):
        """The address of something of this run in S3."""
        return "/".join([f"s3://{self.bucket}/{self.prefix}", *parts])

    def client(self, service):
        """A boto3 client of this place."""
        return self.session.boto_session.client(service)

    def describe(self):
        """What a reader should know of the place, as rows of (name, value)."""
        address = "this machine (local_cloud)" if self.is_local else "Amazon Web Services"
        return [
            ("runs on", address),
            ("region", self.region),
            ("bucket", self.bucket),
            ("role", self.role.rpartition("/")[2]),
            ("run", self.run),
        ]


def connect(where="local"):
    """The `Cloud` to run on.

    Args:
        where: "local" starts `local_cloud` unless it runs already; "aws" uses the account of the
            environment's credentials.

    Raises:
        CloudError: there is no such place, or no credentials, region or role for it.
    """
    if where not in ("local", "aws"):
        raise CloudError(f'WHERE must be "local" or "aws", not {where!r}.')
    if where == "local":
        os.environ.update(start_local_cloud())
        # A profile of a real account would win over the variables just set.
        for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN"):
            os.environ.pop(name, None)
    elif os.environ.get("AWS_ENDPOINT_URL"):
        # Set by `connect("local")` in this kernel, or by `local_cloud env` in its shell.
        raise CloudError(
            f"AWS_ENDPOINT_URL points to {os.environ['AWS_ENDPOINT_URL']}, not to AWS; "
            "restart the kernel from a shell where it is not set."
        )
    quiet_libraries()
    boto_session = boto3.session.Session()
    region = boto_session.region_name
    if region is None:
        raise CloudError("No AWS region is set; `export AWS_DEFAULT_REGION=us-east-1`, say.")
    account = account_id(boto_session)
    # Only now: they take seconds, and ask for a region when they are imported.
    from sagemaker.core import image_uris
    from sagemaker.core.helper.session_helper import Session

    bucket = f"sagemaker-{region}-{account}"
    session = Session(
        boto_session=boto_session, default_bucket=bucket, sagemaker_config=NO_TELEMETRY
    )
    make_bucket(boto_session.client("s3"), bucket, region)

    def image(scope, instance_type):
        return image_uris.retrieve(
            "pytorch",
            region,
            version=PYTORCH_VERSION,
            py_version=PYTHON_VERSION,
            instance_type=instance_type,
            image_scope=scope,
        )

    return Cloud(
        where=where,
        session=session,
        role=find_role(boto_session, bucket) if where == "aws" else make_role(boto_session, bucket),
        bucket=bucket,
        region=region,
        # The SDK keeps no more than 20 characters of it in the name of a tuning job.
        run=datetime.now(timezone.utc).strftime("course-%y%m%d-%H%M%S"),
        training_image=image("training", TRAINING_INSTANCE),
        processing_image=image("training", PROCESSING_INSTANCE),
        inference_image=image("inference", HOSTING_INSTANCE),
    )


def public_s3(region="us-east-1"):
    """A client of AWS's own S3 that needs no account: for public buckets, wherever jobs run."""
    # Named, because `connect("local")` points all other clients of this kernel elsewhere.
    address = f"https://s3.{region}.amazonaws.com"
    # With a named address botocore would put the bucket into the path, which AWS wants to end.
    unsigned = Config(signature_version=UNSIGNED, s3={"addressing_style": "virtual"})
    return boto3.client("s3", region_name=region, endpoint_url=address, config=unsigned)


def start_local_cloud():
    """Start local_cloud unless it runs; return the variables that point AWS clients at it."""
    for command in (["start"], ["env", "--format", "json"]):
        done = subprocess.run(
            [sys.executable, "-m", "local_cloud", *command],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise CloudError(done.stderr.strip() or "local_cloud did not start.")
    return json.loads(done.stdout)


def quiet_libraries():
    """Keep progress messages of the SDK out of the notebook; warnings and errors still show."""
    for name in ("sagemaker", "sagemaker.config", "botocore", "boto3"):
        logging.getLogger(name).setLevel(logging.WARNING)


def account_id(boto_session):
    try:
        return boto_session.client("sts").get_caller_identity()["Account"]
    except (BotoCoreError, ClientError) as error:
        raise CloudError(
            f"No usable AWS credentials ({error}); `aws configure` sets them."
        ) from error


def make_bucket(s3, bucket, region):
    """Create the bucket of the project unless it is there."""
    try:
        s3.head_bucket(Bucket=bucket)
        return
    except ClientError as error:
        if error.response["Error"]["Code"] != "404":
            raise CloudError(f"The bucket {bucket} cannot be used: {error}") from error
    # us-east-1 is the one region that must not be named as a location.
    place = {} if region == "us-east-1" else {"LocationConstraint": region}
    options = {"CreateBucketConfiguration": place} if place else {}
    try:
        s3.create_bucket(Bucket=bucket, **options)
    except ClientError as error:
        raise CloudError(f"The bucket {bucket} cannot be made: {error}") from error


def find_role(boto_session, bucket):
    """The execution role on AWS: `$SAGEMAKER_ROLE`, else the one that Studio runs with."""
    from sagemaker.core.helper.session_helper import get_execution_role

    if os.environ.get("SAGEMAKER_ROLE"):
        return os.environ["SAGEMAKER_ROLE"]
    none = CloudError(
        "No SageMaker execution role found; set SAGEMAKER_ROLE to the ARN of one that may use "
        f"the bucket {bucket}."
    )
    try:
        role = get_execution_role()
    except (ValueError, ClientError) as error:
        raise none from error
    # A person's, of the IAM Identity Center, which no service may take.
    if "/AWSReservedSSO_" in role:
        raise none
    return role


def make_role(boto_session, bucket):
    """Create, or bring up to date, a role that may do what this course does and no more."""
    iam = boto_session.client("iam")
    trust = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Service": "sagemaker.amazonaws.com"},
                "Action": "sts:AssumeRole",
            }
        ],
    }
    try:
        role = iam.create_role(RoleName=ROLE_NAME, AssumeRolePolicyDocument=json.dumps(trust))
    except iam.exceptions.EntityAlreadyExistsException:
        role = iam.get_role(RoleName=ROLE_NAME)
    document = json.dumps(policy(bucket))
    iam.put_role_policy(RoleName=ROLE_NAME, PolicyName="course", PolicyDocument=document)
    return role["Role"]["Arn"]


def policy(bucket):
    """The least that jobs and endpoints of this course need."""
    objects = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"]
    images = ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer", "ecr:BatchCheckLayerAvailability"]
    logs = ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents"]
    logs += ["logs:DescribeLogStreams"]
    statements = [
        (["s3:ListBucket"], f"arn:aws:s3:::{bucket}"),
        # The SDK asks for the whole bucket before it uploads its own files there.
        (objects, f"arn:aws:s3:::{bucket}/*"),
        (logs, "arn:aws:logs:*:*:log-group:/aws/sagemaker/*"),
        (images, "arn:aws:ecr:*:763104351884:repository/pytorch-*"),
        # These actions know no resources; IAM demands the star.
        (["ecr:GetAuthorizationToken", "cloudwatch:PutMetricData"], "*"),
        # Used only for jobs inside a VPC, but the SDK refuses a training role without them.
        ([f"ec2:{action}" for action in NETWORK_ACTIONS], "*"),
    ]
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": actions, "Resource": resource}
            for actions, resource in statements
        ],
    }
