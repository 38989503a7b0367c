"""The web app on this machine: a model, its endpoint, the function, the page, until Ctrl-C.

    python -m studio.web                                  # trains a model, then serves it
    python -m studio.web --data dogs --port 8000          # on other pictures, at a port of choice
    python -m studio.web --model build/model              # takes a model that is there

The page, the function and their template are those of web/, which `make web-deploy` takes to an
account. The notebook calls `serve` and `screenshot`.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tarfile
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError
from PIL import Image, ImageDraw, ImageFont

from local_cloud.__main__ import port_number
from local_cloud.errors import CloudError as GatewayError
from local_cloud.gateway import gateway
from studio import datasets
from studio.cleanup import remove_hosting
from studio.cloud import ROOT, CloudError, connect
from studio.costs import agree
from studio.jobs import (
    JobFailed,
    follow,
    latest_job,
    read_from_archive,
    split_uri,
    stage_source,
    wait_for_endpoint,
)
from studio.pictures import DataError
from web import site

TEMPLATE = ROOT / "web" / "template.yaml"
TITLE = "What is on the photo?"
DATA = "listings", "fashion-mnist"  # The first is taken where it is at hand.
PRECISION = 0.97  # So often the page shall be right where it names a class.
# Enough for nine in ten pictures of Fashion-MNIST, in a minute; photos take their own recipe.
SMALL = {"epochs": 2, "augment": "shift,flip"}
SAMPLES = 6
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH, HEIGHT = 1100, 800  # CSS pixels of a screenshot's window.
PATIENCE = 60_000  # Milliseconds that an answer may take to show.
# Of the page: where a file goes in, and what is shown when the answer, or a fault, is there.
FILE, ANSWER, FAULT = "#file", "#found:not([hidden])", "#problem:not([hidden])"


class NoBrowser(Exception):
    """Why no page can be opened here, in one sentence."""


class Served:
    """The running page and its API; a context manager. `close` ends both."""

    def __init__(self, running, folder):
        self._running, self._folder = running, folder
        self.page_url, self.api_url = running.page_url, running.api_url

    def close(self):
        self._running.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def serve(cloud, endpoint_name, model_json, pictures, *, port=0, title=TITLE):
    """Start function, API and page of an endpoint on this machine; return them as `Served`.

    Args:
        model_json: content of the model's model.json.
        pictures: paths of photos that the page offers, each in a folder named as its class.
        port: of the page; 0 for any free one.

    Raises:
        GatewayError: the port cannot be used.
        ValueError: model_json is no model's, or a picture cannot be read.
    """
    folder = Path(tempfile.mkdtemp(prefix="site-"))
    try:
        running = gateway(
            TEMPLATE,
            parameters={
                "AWS::StackName": "photo-classifier",
                "PageOrigin": "{page_url}",
                "ApiOrigin": "{api_url}",
            },
            environment={
                "ENDPOINT_NAME": endpoint_name,
                "CLASS_NAMES": json.dumps(model_json["class_names"]),
                "CORRECTIONS_BUCKET": cloud.bucket,
                "CORRECTIONS_PREFIX": f"{cloud.prefix}/corrections",
                **({} if cloud.is_local else account_variables(cloud)),
            },
            site=folder,
            port=port,
            local=cloud.is_local,
        )
        served = Served(running, folder)
    except BaseException:
        shutil.rmtree(folder)
        raise
    try:
        site.build(
            folder, api=served.api_url, model_json=model_json, pictures=pictures, title=title
        )
    except BaseException:
        served.close()
        raise
    return served


def account_variables(cloud):
    """What lets a function that runs here ask an account: the credentials of this session."""
    keys = cloud.session.boto_session.get_credentials().get_frozen_credentials()
    variables = {
        "AWS_REGION": cloud.region,
        "AWS_DEFAULT_REGION": cloud.region,
        "AWS_ACCESS_KEY_ID": keys.access_key,
        "AWS_SECRET_ACCESS_KEY": keys.secret_key,
        "AWS_SESSION_TOKEN": keys.token,
    }
    return {name: value for name, value in variables.items() if value}


def train(cloud, dataset):
    """Train a classifier on a data set by a training job; return where its artifact is.

    Raises:
        JobFailed: the training failed.
    """
    # They take seconds, and a model that is there needs none of it.
    from sagemaker.core.training.configs import Compute, InputData, SourceCode
    from sagemaker.train import ModelTrainer

    packed = datasets.pack(dataset, ROOT / "build" / "web")
    inputs = [
        InputData(
            channel_name=split,
            data_source=cloud.session.upload_data(
                str(packed[split]), cloud.bucket, f"{cloud.prefix}/data/{split}"
            ),
        )
        for split in ("train", "valid")
    ]
    small = SMALL if dataset.name == "fashion-mnist" else {}
    trainer = ModelTrainer(
        training_image=cloud.training_image,
        source_code=SourceCode(
            source_dir=stage_source(ROOT / "build" / "web" / "source"),
            entry_script="train_model.py",
            requirements="requirements-train.txt",
        ),
        compute=Compute(instance_type=cloud.training_instance, instance_count=1),
        hyperparameters={"wanted-precision": PRECISION, **small},
        base_job_name=f"{cloud.run}-web",
        role=cloud.role,
        sagemaker_session=cloud.session,
    )
    agree(cloud, "the training job", "Training", cloud.training_instance, max_hours=1)
    trainer.train(input_data_config=inputs, wait=False, logs=False)
    name = latest_job(cloud, f"{cloud.run}-web")
    try:
        job = follow(cloud, name)
    except KeyboardInterrupt:
        cloud.client("sagemaker").stop_training_job(TrainingJobName=name)
        raise
    return job["ModelArtifacts"]["S3ModelArtifacts"]


def take_model(cloud, model):
    """Where the artifact of a model is in S3: as given, or after it was brought there.

    Args:
        model: s3:// address or path of a model.tar.gz, or a folder that train_model.py wrote.

    Raises:
        DataError: there is no such model.
    """
    if model.startswith("s3://"):
        return model
    path = Path(model)
    if path.is_file():
        return upload(cloud, path)
    if not (path / "model.json").is_file():
        raise DataError(
            f"{model} is no model: give an s3:// address or path of a model.tar.gz, or a folder "
            "that train_model.py wrote."
        )
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch) / "model.tar.gz"
        with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
            for each in sorted(path.iterdir()):
                tar.add(each, arcname=each.name)
        return upload(cloud, archive)


def upload(cloud, archive):
    """Copy an archive to this run's model in S3; return its address."""
    uri = cloud.s3_uri("model", "model.tar.gz")
    cloud.client("s3").upload_file(str(archive), *split_uri(uri))
    return uri


def read_card(cloud, model_uri):
    """The content of model.json in the artifact at an S3 address.

    Raises:
        DataError: there is no such artifact, or it is none of this project's.
    """
    try:
        return json.loads(read_from_archive(cloud, model_uri, "model.json"))
    except (ClientError, KeyError, ValueError, tarfile.TarError) as error:
        raise DataError(f"{model_uri} is no artifact of train_model.py: {error}.") from error


def deploy(cloud, model_uri):
    """Create an endpoint of this run for the artifact at an S3 address; return its name.

    Raises:
        JobFailed: it did not come into service.
    """
    client, name = cloud.client("sagemaker"), cloud.run
    agree(cloud, "the endpoint", "Hosting", cloud.hosting_instance, max_hours=1)
    container = {
        "Image": cloud.inference_image,
        "ModelDataUrl": model_uri,
        "Environment": {"SAGEMAKER_PROGRAM": "inference.py"},
    }
    client.create_model(ModelName=name, PrimaryContainer=container, ExecutionRoleArn=cloud.role)
    variant = {
        "VariantName": "only",
        "ModelName": name,
        "InstanceType": cloud.hosting_instance,
        "InitialInstanceCount": 1,
    }
    client.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    client.create_endpoint(EndpointName=name, EndpointConfigName=name)
    seconds = wait_for_endpoint(cloud, name)
    print(f"The endpoint {name} is in service after {seconds:.0f} s.")
    return name


@contextlib.contextmanager
def chromium():
    """A headless Chromium of this machine, driven by Playwright, for a with block.

    Raises:
        NoBrowser: there is no Chromium, or no Playwright.
    """
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise NoBrowser(f"There is no browser to open the page in: {', '.join(BROWSERS)}.")
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        raise NoBrowser("Playwright is not installed, which drives the browser.") from error
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=program)
        except Error as error:
            raise NoBrowser(f"{program} does not start: {error.message.splitlines()[0]}") from error
        with contextlib.closing(browser):
            yield browser


def screenshot(page_url, picture, target):
    """Ask the page about a picture; return the path of a PNG of how it answers.

    Where there is no browser, the picture at `target` says so in words.

    Args:
        picture: path of the photo that is chosen on the page.
        target: path of the PNG to write.
    """

    def shoot():
        with chromium() as browser:
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.goto(page_url)
            page.set_input_files(FILE, picture)
            page.wait_for_selector(f"{ANSWER}, {FAULT}", timeout=PATIENCE)
            page.screenshot(path=target, full_page=True, animations="disabled")

    Path(target).parent.mkdir(parents=True, exist_ok=True)
    try:
        # A notebook's own thread has an event loop, in which Playwright refuses to run.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(shoot).result()
    except NoBrowser as reason:
        write_words(str(reason), target)
    return str(target)


def write_words(words, target):
    """Write a PNG with one line of text."""
    picture = Image.new("RGB", (WIDTH, 80), "white")
    ImageDraw.Draw(picture).text((24, 28), words, "black", ImageFont.load_default(18))
    picture.save(target, "PNG")


def main():
    args = get_args_parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ends as Ctrl-C does.
    try:
        run(args)
    except (CloudError, DataError, GatewayError, JobFailed, ValueError) as error:
        print(f"web: {error}", file=sys.stderr)
        return 1
    except (BotoCoreError, ClientError) as error:
        print(f"web: the cloud refused: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("web: interrupted.", file=sys.stderr)
        return 130
    return 0


def get_args_parser():
    parser = argparse.ArgumentParser(
        prog="python -m studio.web",
        description=__doc__.partition("\n")[0],
        epilog=__doc__.partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        help="s3:// address or path of a model.tar.gz, or a folder that train_model.py wrote "
        "(default: one is trained)",
    )
    parser.add_argument(
        "--data",
        help="pictures to train on and to offer as samples, as studio.datasets takes them "
        f"(default: {' or '.join(DATA)})",
    )
    parser.add_argument(
        "--port", type=port_number, default=0, help="of the page (default: any free)"
    )
    return parser


def run(args):
    dataset = datasets.prepare(args.data or default_data(), ROOT / "build" / "data")
    print(f"{dataset.name}: {int(dataset.counts().to_numpy().sum()):,} pictures.")
    cloud = connect("local")
    try:
        model_uri = take_model(cloud, args.model) if args.model else train(cloud, dataset)
        card = read_card(cloud, model_uri)
        print(f"The model is {model_uri}.")
        name = deploy(cloud, model_uri)
        with serve(cloud, name, card, sample_pictures(dataset, card), port=args.port) as page:
            print(f"\nThe page is at {page.page_url}\nCtrl-C ends it.", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
        print(f"\nCorrections are in {cloud.s3_uri('corrections')}.")
    finally:
        remove_hosting(cloud)


def default_data():
    """The first of `DATA` that is in DATA_DIR, else the last, which can be had anywhere."""
    folder = os.environ.get("DATA_DIR")
    return next((name for name in DATA if folder and Path(folder, name).is_dir()), DATA[-1])


def sample_pictures(dataset, card):
    """Some photos that the model has not learnt from; none where it knows other classes."""
    if list(dataset.class_names) != list(card["class_names"]) or "test" not in dataset.splits:
        return []
    drawn = datasets.samples(dataset, "test", per_class=1).values()
    return [path for paths in drawn for path in paths][:SAMPLES]


if __name__ == "__main__":
    sys.exit(main())
