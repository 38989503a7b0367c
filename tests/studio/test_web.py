"""`make web` from the command to Ctrl-C: a model is trained, served and asked, nothing is left."""

import base64
import os
import re
import signal
import subprocess
import sys
import tarfile

import boto3
import psutil
import pytest
import urllib3
from PIL import Image
from samples import heed_ctrl_c

from studio import web
from studio.cloud import ROOT, start_local_cloud
from studio.pictures import DataError


class Web:
    """A running `python -m studio.web` and what it printed until the page was there."""

    def __init__(self, home, *words):
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, "-m", "studio.web", *map(str, words)],
            cwd=ROOT,
            env={**os.environ, "LOCAL_CLOUD_HOME": str(home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heed_ctrl_c,
        )
        self.printed = ""
        while "Ctrl-C" not in self.printed and (line := self.process.stdout.readline()):
            self.printed += line
        found = re.search(r"^The page is at (http://127\.0\.0\.1:\d+)$", self.printed, re.MULTILINE)
        assert found, self.printed + self.process.stderr.read()
        self.page_url = found[1]
        self.workers = psutil.Process(self.process.pid).children(recursive=True)

    def page(self, path):
        return urllib3.request("GET", f"{self.page_url}/{path}", timeout=60)


@pytest.fixture(scope="module")
def served(stripes, tmp_path_factory):
    """The page of a model that was trained on stripes; the cloud ends with the module."""
    home = tmp_path_factory.mktemp("web") / "home"
    served = Web(home, "--data", stripes)
    yield served
    served.process.kill()
    served.process.communicate()
    environment = {**os.environ, "LOCAL_CLOUD_HOME": str(home)}
    subprocess.run([sys.executable, "-m", "local_cloud", "reset"], cwd=ROOT, env=environment)


def test_it_says_how_far_it_is(served):
    lines = served.printed.splitlines()
    assert any(re.match(r"stripes\d+: 120 pictures\.$", line) for line in lines)
    assert any("epoch=" in line for line in lines)
    assert any(re.match(r"The model is s3://.*model\.tar\.gz\.$", line) for line in lines)
    assert any("is in service after" in line for line in lines)


def test_the_page_knows_the_model_and_offers_samples(served):
    settings = served.page("site.json").json()
    assert settings["classes"] == sorted(settings["classes"])
    assert len(settings["classes"]) == len(settings["samples"]) == 3
    assert served.page(settings["samples"][0]["file"]).status == 200
    policy = served.page("").headers["content-security-policy"]
    assert settings["api"] in policy


def test_a_question_reaches_the_endpoint(served, stripes):
    settings = served.page("site.json").json()
    for name in settings["classes"]:
        picture = next((stripes / "test" / name).iterdir()).read_bytes()
        reply = urllib3.request(
            "POST",
            f"{settings['api']}/classify",
            body=picture,
            headers={"Content-Type": "image/png", "Origin": served.page_url},
            timeout=60,
        )
        assert reply.status == 200, reply.data
        assert max(reply.json()["scores"], key=reply.json()["scores"].get) == name
        assert reply.headers["access-control-allow-origin"] == served.page_url


def test_a_screenshot_shows_the_answer(served, stripes, tmp_path, monkeypatch):
    picture = next((stripes / "test").rglob("*.png"))
    path = web.screenshot(served.page_url, picture, tmp_path / "new" / "page.png")
    with Image.open(path) as shot:
        assert shot.width == web.WIDTH
        assert len(shot.convert("RGB").getcolors(1 << 24)) > 50


def test_without_a_browser_the_screenshot_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    path = web.screenshot("http://127.0.0.1:9", tmp_path / "photo.jpg", tmp_path / "page.png")
    with Image.open(path) as shot:
        assert len(shot.convert("L").getcolors()) > 1


def test_a_model_is_taken_from_a_folder_or_an_archive(model_dir, tmp_path):
    uploaded = []

    class Cloud:
        def s3_uri(self, *parts):
            return "/".join(["s3://bucket", *parts])

        def client(self, service):
            return self

        def upload_file(self, path, bucket, key):
            with tarfile.open(path) as archive:
                uploaded.append(archive.getnames())

    assert web.take_model(Cloud(), "s3://b/model.tar.gz") == "s3://b/model.tar.gz"
    assert web.take_model(Cloud(), str(model_dir)) == "s3://bucket/model/model.tar.gz"
    archive = tmp_path / "model.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(model_dir / "model.json", "model.json")
    web.take_model(Cloud(), str(archive))
    assert {"model.json", "code", "code/inference.py"} <= set(uploaded[0])
    assert uploaded[1] == ["model.json"]
    with pytest.raises(DataError, match=r"nowhere is no model: give an s3:// address or path"):
        web.take_model(Cloud(), "nowhere")


def test_wrong_data_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["web", "--data", "nothing-of-that-name"])
    assert web.main() == 1
    err = capsys.readouterr().err
    assert err.startswith("web: There is no folder “nothing-of-that-name”")
    assert "Traceback" not in err


def test_ctrl_c_ends_all_but_the_corrections(served, monkeypatch):
    """Last of this module: it ends what the others ask."""
    settings = served.page("site.json").json()
    sample = served.page(settings["samples"][0]["file"]).data
    correction = {"image": base64.b64encode(sample).decode(), "label": settings["classes"][0]}
    correction |= {"predicted": None, "consent": True}
    reply = urllib3.request("POST", f"{settings['api']}/corrections", json=correction, timeout=60)
    assert reply.status == 201, reply.data
    served.process.send_signal(signal.SIGINT)
    out, err = served.process.communicate(timeout=60)
    assert served.process.returncode == 0, err
    bucket, key = re.search(r"Corrections are in s3://([^/]+)/(\S+)\.$", out, re.MULTILINE).groups()
    assert "deleted the endpoint" in out
    assert not any(worker.is_running() for worker in served.workers)
    monkeypatch.setenv("LOCAL_CLOUD_HOME", str(served.home))
    for name, value in start_local_cloud().items():
        monkeypatch.setenv(name, value)
    objects = boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix=key)["Contents"]
    assert f"{key}/{settings['classes'][0]}/{reply.json()['id']}.jpg" in {o["Key"] for o in objects}
    assert boto3.client("sagemaker").list_endpoints()["Endpoints"] == []
