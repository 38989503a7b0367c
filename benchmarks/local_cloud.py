"""What the local cloud costs: the same work through it and by hand, side by side in one run.

    python benchmarks/local_cloud.py                       # a table, about two minutes
    python benchmarks/local_cloud.py --json build/bench.json --check

Starts a local cloud of its own in a temporary folder and stops it at the end. What is compared runs
in turns (by hand, through the cloud, by hand, ...), so that a machine that slows down meanwhile
slows both; figures are medians. `--check` makes a missed target an error.
"""

import argparse
import contextlib
import functools
import importlib.util
import io
import json
import logging
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

PROJECT = Path(__file__).resolve().parent.parent
BUCKET, ROLE_NAME = "bench", "bench"
IMAGE = "any/image:1"
INSTANCE = "ml.m5.large"
POLL = 0.02  # Seconds between two looks at a status; far below every figure.
TIMEOUT = 300  # Seconds that any one job or endpoint may take here.
CALLERS = 8
WARM_UP = 10  # Requests that open connections and fill caches, not counted.
PICTURE_BYTES = 20_000
# Targets, in the unit of their figure.
TRAINING_TARGET, ENDPOINT_TARGET, LATENCY_TARGET = 4.0, 6.0, 5.0

# One thread everywhere: by hand and in the cloud then do the same work.
TRAIN = """
import os
import torch

torch.set_num_threads(1)
torch.manual_seed(0)
data = torch.load(os.path.join(os.environ["SM_CHANNEL_TRAIN"], "data.pt"))
model = torch.nn.Linear(100, 10)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(200):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(data["x"]), data["y"]).backward()
    optimizer.step()
torch.save(model.state_dict(), os.path.join(os.environ["SM_MODEL_DIR"], "model.pth"))
print("trained")
"""
INFERENCE = """
import io
import json
import os

import numpy as np
import torch
from PIL import Image

torch.set_num_threads(1)


def network():
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, stride=4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(16, 10), torch.nn.Softmax(dim=1),
    )


def model_fn(model_dir):
    model = network().eval()
    model.load_state_dict(torch.load(os.path.join(model_dir, "model.pth")))
    return model


def input_fn(body, content_type):
    pixels = np.asarray(Image.open(io.BytesIO(body)).convert("RGB"), np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)


def predict_fn(data, model):
    with torch.inference_mode():
        return model(data)[0].tolist()


def output_fn(prediction, accept):
    return json.dumps(prediction)
"""


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        by_hand, cloud: medians of the two ways; None where there is no such way.
        compared: what the target bounds, such as the difference of the two.
        target: the bound; None where the figure is only told.
    """

    name: str
    unit: str
    by_hand: float | None
    cloud: float
    compared: float | None = None
    target: float | None = None

    @property
    def met(self):
        return self.target is None or self.compared <= self.target


def main():
    args = get_args_parser().parse_args()
    logging.disable(logging.INFO)  # The SDK tells every step.
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        with running_cloud(folder / "home"):
            figures = measure(args, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("\n" + table(figures))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report(args, figures), indent=2) + "\n")
    missed = [figure.name for figure in figures if not figure.met]
    if args.check and missed:
        print("missed: " + ", ".join(missed), file=sys.stderr)
        return 1
    return 0


def get_args_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog=__doc__.partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--repeats", type=positive, default=5, help="training jobs and endpoints (%(default)s)"
    )
    parser.add_argument(
        "--requests", type=positive, default=200, help="requests a caller (%(default)s)"
    )
    parser.add_argument(
        "--jobs", type=positive, default=200, help="quick jobs started at once (%(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    return parser


def positive(text):
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def progress(words):
    print(f"… {words}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def running_cloud(home):
    """A local cloud in `home`, and this process's variables pointing at it."""
    os.environ.update(LOCAL_CLOUD_HOME=str(home), OMP_NUM_THREADS="1")
    os.environ.pop("AWS_PROFILE", None)  # It would win over the keys set below.
    progress("starting a local cloud")
    command_line("start")
    try:
        os.environ.update(json.loads(command_line("env", "--format", "json")))
        yield
    finally:
        command_line("stop")


def command_line(*arguments):
    """Run `python -m local_cloud` and return what it prints."""
    command = [sys.executable, "-m", "local_cloud", *arguments]
    return subprocess.run(
        command, cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


@functools.cache
def client(service):
    """The boto3 client of a service, pointed at the local cloud by the variables set above."""
    # An answer that is lost must not be asked for again unnoticed.
    config = Config(max_pool_connections=CALLERS, retries={"total_max_attempts": 1})
    return boto3.client(service, config=config)


def measure(args, folder):
    """All figures, in the order of the table."""
    prepare(folder)
    figures = training(args.repeats, folder)
    figures += endpoints(args.repeats, folder)
    figures += invocations(args.requests, folder)
    figures += quick_jobs(args.jobs)
    return figures


def prepare(folder):
    """Bucket, role, data, model archive and picture."""
    import numpy as np
    import torch
    from PIL import Image

    client("s3").create_bucket(Bucket=BUCKET)
    allow = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    trust = {
        "Effect": "Allow",
        "Principal": {"Service": "sagemaker.amazonaws.com"},
        "Action": "sts:AssumeRole",
    }
    client("iam").create_role(RoleName=ROLE_NAME, AssumeRolePolicyDocument=policy(trust))
    client("iam").put_role_policy(
        RoleName=ROLE_NAME, PolicyName="all", PolicyDocument=policy(allow)
    )

    for name in ("code", "train", "model/code"):
        (folder / name).mkdir(parents=True)
    (folder / "code" / "train.py").write_text(TRAIN)
    generator = torch.Generator().manual_seed(0)
    data = {
        "x": torch.randn(1000, 100, generator=generator),
        "y": torch.randint(10, (1000,), generator=generator),
    }
    torch.save(data, folder / "train" / "data.pt")
    upload(folder / "train" / "data.pt", "train/data.pt")

    (folder / "model" / "code" / "inference.py").write_text(INFERENCE)
    torch.manual_seed(0)
    model = load_handlers(folder).network()
    torch.save(model.state_dict(), folder / "model" / "model.pth")
    with tarfile.open(folder / "model.tar.gz", "w:gz") as archive:
        archive.add(folder / "model", arcname=".")
    upload(folder / "model.tar.gz", "model.tar.gz")

    noise = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)
    picture = Image.fromarray(noise).resize((224, 224))
    (folder / "picture.jpg").write_bytes(jpeg(picture, PICTURE_BYTES))


def role_arn():
    return client("iam").get_role(RoleName=ROLE_NAME)["Role"]["Arn"]


def policy(statement):
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def upload(path, key):
    client("s3").upload_file(str(path), BUCKET, key)


def jpeg(picture, size):
    """The picture as JPEG in the best quality that stays under `size` bytes."""
    for quality in range(95, 0, -5):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= size:
            return buffer.getvalue()
    raise SystemExit(f"No JPEG quality brings the picture under {size} bytes.")


def load_handlers(folder):
    """The inference script as a module of this process."""
    path = folder / "model" / "code" / "inference.py"
    spec = importlib.util.spec_from_file_location("bench_inference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def seconds(function, *arguments, **options):
    """How long a call takes."""
    started = time.perf_counter()
    function(*arguments, **options)
    return time.perf_counter() - started


def by_hand(folder, *arguments, **environment):
    """Run Python in `folder` as a reader would without any cloud."""
    env = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    command = [sys.executable, *arguments]
    subprocess.run(
        command, cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL, timeout=TIMEOUT
    )


def training_status(name):
    return client("sagemaker").describe_training_job(TrainingJobName=name)["TrainingJobStatus"]


def endpoint_status(name):
    return client("sagemaker").describe_endpoint(EndpointName=name)["EndpointStatus"]


def until(wanted, status, name):
    """Wait until `status(name)` is `wanted`; any other final status is an error."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        current = status(name)
        if current == wanted:
            return
        if current in ("Failed", "Stopped"):
            raise SystemExit(f"Expected {wanted}, not {current}.")
        time.sleep(POLL)
    raise SystemExit(f"Not {wanted} within {TIMEOUT} s.")


def training(repeats, folder):
    """Seconds of one training job, from the SDK's call until its status is Completed."""
    from sagemaker.core.helper.session_helper import Session
    from sagemaker.core.training.configs import Compute, InputData, SourceCode
    from sagemaker.train.model_trainer import ModelTrainer

    no_telemetry = {
        "SchemaVersion": "1.0",
        "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}},
    }
    session = Session(default_bucket=BUCKET, sagemaker_config=no_telemetry)
    accepted = []

    def through_sdk():
        started = time.perf_counter()
        trainer = ModelTrainer(
            training_image=IMAGE,
            source_code=SourceCode(source_dir=str(folder / "code"), entry_script="train.py"),
            compute=Compute(instance_type=INSTANCE, instance_count=1),
            base_job_name=f"bench-{uuid.uuid4().hex[:8]}",
            role=role_arn(),
            sagemaker_session=session,
        )
        channel = InputData(channel_name="train", data_source=f"s3://{BUCKET}/train")
        trainer.train(input_data_config=[channel], wait=False)
        accepted.append(time.perf_counter() - started)
        # Not the SDK's own wait, which looks every five seconds.
        name = trainer._latest_training_job.training_job_name
        until("Completed", training_status, name)

    hand, cloud = [], []
    for number in range(repeats):
        progress(f"training job {number + 1} of {repeats}")
        model = folder / f"hand-{number}"
        model.mkdir()
        variables = {"SM_CHANNEL_TRAIN": folder / "train", "SM_MODEL_DIR": model}
        hand.append(seconds(by_hand, folder / "code", "train.py", **variables))
        cloud.append(seconds(through_sdk))
    hand, cloud = statistics.median(hand), statistics.median(cloud)
    return [
        Figure("training job", "s", hand, cloud, cloud - hand, TRAINING_TARGET),
        Figure("  of it until the job is accepted", "s", None, statistics.median(accepted)),
    ]


def endpoints(repeats, folder):
    """Seconds from CreateEndpoint until InService, and of loading the same model by hand."""
    create_model("bench")
    code = folder / "model" / "code"
    load = f"import inference; inference.model_fn({str(folder / 'model')!r})"

    def start():
        client("sagemaker").create_endpoint(EndpointName="bench", EndpointConfigName="bench")
        until("InService", endpoint_status, "bench")

    hand, cloud = [], []
    for number in range(repeats):
        progress(f"endpoint {number + 1} of {repeats}")
        if number:
            delete_endpoint("bench")
        hand.append(seconds(by_hand, code, "-c", load))
        cloud.append(seconds(start))
    hand, cloud = statistics.median(hand), statistics.median(cloud)
    return [Figure("endpoint in service", "s", hand, cloud, cloud, ENDPOINT_TARGET)]


def create_model(name):
    """A model and an endpoint configuration for it."""
    container = {"Image": IMAGE, "ModelDataUrl": f"s3://{BUCKET}/model.tar.gz"}
    client("sagemaker").create_model(
        ModelName=name, PrimaryContainer=container, ExecutionRoleArn=role_arn()
    )
    variant = {
        "VariantName": "all",
        "ModelName": name,
        "InitialInstanceCount": 1,
        "InstanceType": INSTANCE,
    }
    client("sagemaker").create_endpoint_config(
        EndpointConfigName=name, ProductionVariants=[variant]
    )


def delete_endpoint(name):
    """Delete an endpoint and wait until its name is free."""
    client("sagemaker").delete_endpoint(EndpointName=name)
    deadline = time.monotonic() + TIMEOUT
    while client("sagemaker").list_endpoints(NameContains=name)["Endpoints"]:
        if time.monotonic() > deadline:
            raise SystemExit(f"The endpoint is still there after {TIMEOUT} s.")
        time.sleep(POLL)


def invocations(requests, folder):
    """Milliseconds of one request against the bare handlers; requests a second of many callers."""
    picture = (folder / "picture.jpg").read_bytes()
    handlers = load_handlers(folder)
    model = handlers.model_fn(folder / "model")

    def ask_handlers():
        prediction = handlers.predict_fn(handlers.input_fn(picture, "image/jpeg"), model)
        return json.loads(handlers.output_fn(prediction, "application/json"))

    expected = ask_handlers()
    progress(f"{requests} requests, one after the other")
    for _ in range(WARM_UP):
        ask(picture)
    hand, cloud = [], []
    for _ in range(requests):
        hand.append(seconds(ask_handlers))
        cloud.append(seconds(ask, picture))
    hand, cloud = 1000 * statistics.median(hand), 1000 * statistics.median(cloud)
    figures = [Figure("one request", "ms", hand, cloud, cloud - hand, LATENCY_TARGET)]
    lost = 0
    for callers in (1, CALLERS):
        progress(f"{callers} callers with {requests} requests each")
        started = time.perf_counter()
        with ThreadPoolExecutor(callers) as pool:
            right = pool.map(lambda _: is_right(picture, expected), range(callers * requests))
            lost += callers * requests - sum(right)
        rate = callers * requests / (time.perf_counter() - started)
        figures.append(Figure(f"throughput, callers: {callers}", "requests/s", None, rate))
    return [*figures, Figure("lost or wrong answers", "requests", None, lost, lost, 0)]


def ask(picture):
    """The answer of the endpoint."""
    answer = client("sagemaker-runtime").invoke_endpoint(
        EndpointName="bench", ContentType="image/jpeg", Accept="application/json", Body=picture
    )
    return json.loads(answer["Body"].read())


def is_right(picture, expected):
    """Whether the endpoint answers what the handlers answer, but for rounding."""
    try:
        answer = ask(picture)
    except (BotoCoreError, ClientError):
        return False
    return max(abs(a - b) for a, b in zip(answer, expected)) < 1e-5


def quick_jobs(count):
    """Jobs a minute, of jobs that do nothing and are all started at once."""
    names = [f"quick-{number}" for number in range(count)]
    progress(f"{count} quick jobs")
    started = time.perf_counter()
    for name in names:
        client("sagemaker").create_training_job(
            TrainingJobName=name,
            AlgorithmSpecification={
                "TrainingImage": IMAGE,
                "TrainingInputMode": "File",
                "ContainerEntrypoint": ["/bin/sh", "-c", "echo done"],
            },
            RoleArn=role_arn(),
            OutputDataConfig={"S3OutputPath": f"s3://{BUCKET}/out"},
            ResourceConfig={"InstanceType": INSTANCE, "InstanceCount": 1, "VolumeSizeInGB": 1},
            StoppingCondition={"MaxRuntimeInSeconds": TIMEOUT},
        )
    for name in names:
        until("Completed", training_status, name)
    rate = 60 * count / (time.perf_counter() - started)
    return [Figure(f"{count} quick jobs at once", "jobs/min", None, rate)]


def table(figures):
    """The figures as aligned text."""
    rows = [("", "by hand", "local cloud", "compared", "target", "")]
    for figure in figures:
        target = "" if figure.target is None else f"≤ {figure.target:g}"
        verdict = "" if figure.target is None else ("ok" if figure.met else "MISSED")
        numbers = [number(value) for value in (figure.by_hand, figure.cloud, figure.compared)]
        rows.append((f"{figure.name} [{figure.unit}]", *numbers, target, verdict))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )


def number(value):
    return "" if value is None else f"{value:.2f}"


def report(args, figures):
    """What goes into the JSON file."""
    return {
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "repeats": args.repeats,
        "requests": args.requests,
        "jobs": args.jobs,
        "figures": [{**asdict(figure), "met": figure.met} for figure in figures],
    }


if __name__ == "__main__":
    sys.exit(main())
