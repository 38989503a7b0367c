"""The page, the gateway, the function and a real endpoint together, as `make web` joins them."""

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from samples import encode, heed_ctrl_c

from studio import web
from studio.cloud import ROOT, connect
from vision.classifier import load_classifier

SIDE = 3000  # Pixels; 4000 × 3000 are 12 megapixels.
PHONE = {"viewport": {"width": 360, "height": 640}, "is_mobile": True, "has_touch": True}


def pattern(share_of_lying):
    """A picture of 16 × 16 with lying stripes, standing ones, or both on top of each other."""
    rows, columns = np.indices((16, 16)) // 2 % 2
    return 40 + 110 * (share_of_lying * rows + (1 - share_of_lying) * columns)


def confidences(model_dir, patterns):
    classifier = load_classifier(model_dir)
    tensors = [classifier.decode(encode(each)) for each in patterns]
    return [classifier.probabilities(each.unsqueeze(0)).max().item() for each in tensors]


@pytest.fixture(scope="module")
def model(model_dir, tmp_path_factory):
    """(folder of the model of stripes, a picture that it is not sure about)."""
    folder = tmp_path_factory.mktemp("model") / "model"
    shutil.copytree(model_dir, folder)
    mixed = [pattern(share) for share in np.linspace(0, 1, 21)]
    doubts = confidences(folder, mixed)
    sure = min(confidences(folder, [pattern(0), pattern(1)]))
    unsure = mixed[int(np.argmin(doubts))]
    card = json.loads((folder / "model.json").read_text())
    card["threshold"] = (min(doubts) + sure) / 2
    (folder / "model.json").write_text(json.dumps(card))
    return folder, unsure


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    home = str(tmp_path_factory.mktemp("cloud") / "home")
    with mock.patch.dict(os.environ, LOCAL_CLOUD_HOME=home):
        try:
            yield connect("local")
        finally:
            subprocess.run([sys.executable, "-m", "local_cloud", "reset"], cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def served(cloud, model, stripes):
    """The running page; its endpoint is named as the run."""
    folder, _ = model
    web.deploy(cloud, web.take_model(cloud, str(folder)))
    card = json.loads((folder / "model.json").read_text())
    pictures = [next((stripes / "test" / name).iterdir()) for name in card["class_names"]]
    with web.serve(cloud, cloud.run, card, pictures) as served:
        yield served


@pytest.fixture
def page(visit, served):
    return visit(served.page_url)


def choose(page, data, name="photo.jpg"):
    page.set_input_files("#file", {"name": name, "mimeType": "", "buffer": data})


def answer(page):
    page.locator("#found").wait_for()
    return page.text_content("#winner")


def sent(page):
    """The bytes that the page sent: it shows these."""
    return base64.b64decode(page.get_attribute("#preview", "src").partition(",")[2])


def corrections(cloud):
    """{key: bytes} of what is stored, without the prefix."""
    s3, prefix = cloud.client("s3"), f"{cloud.prefix}/corrections/"
    found = s3.list_objects_v2(Bucket=cloud.bucket, Prefix=prefix).get("Contents", [])
    return {
        each["Key"].removeprefix(prefix): s3.get_object(Bucket=cloud.bucket, Key=each["Key"])[
            "Body"
        ].read()
        for each in found
    }


def phone_photo():
    """12 megapixels that show lying stripes when turned as the EXIF data says, else standing."""
    image = Image.fromarray(pattern(1).astype(np.uint8)).resize((SIDE, SIDE), Image.NEAREST)
    upright = Image.new("L", (SIDE, SIDE * 4 // 3), 90)
    upright.paste(image, (0, SIDE // 6))
    exif = Image.Exif()
    exif[0x0112] = 6  # To be turned clockwise by a quarter.
    buffer = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).convert("RGB").save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def test_a_rotated_phone_photo_is_answered_upright_from_a_few_kilobytes(visit, served):
    page = visit(served.page_url, **PHONE)
    photo = {"name": "IMG_1.JPG", "mimeType": "image/jpeg", "buffer": phone_photo()}
    page.set_input_files("#camera", photo)
    assert answer(page) == "lying"
    assert len(sent(page)) < 12_000
    with Image.open(io.BytesIO(sent(page))) as image:
        rows = np.asarray(image.convert("L")).astype(int)
        assert image.width == image.height
    # Upright: it changes from row to row and not from column to column; and nothing of the grey
    # margins above and below the central square is left.
    assert np.abs(np.diff(rows, axis=1)).max() < 8
    assert abs(rows[0].mean() - 40) < 8
    assert abs(rows[-1].mean() - 150) < 8


def test_samples_drops_and_doubts_are_answered_by_the_endpoint(page, model, served):
    buttons = page.locator("#samples button")
    for button, name in zip(buttons.all(), ["lying", "squares", "standing"], strict=True):
        button.click()
        expect(page.locator("#winner")).to_have_text(name)
    choose(page, encode(model[1]), "both.png")
    expect(page.locator("#winner")).to_have_text("not sure")
    assert re.fullmatch(
        r"Perhaps \w+ \(\d+%\) or \w+ \(\d+%\)\. A category is named from \d+% on\.",
        page.inner_text("#sure"),
    )
    assert page.locator("#bars li").count() == 3
    choose(page, b"Dear diary")
    expect(page.locator("#sentence")).to_contain_text("is not a picture")


def test_a_correction_is_stored_with_the_picture(page, cloud, stripes):
    picture = next((stripes / "test" / "squares").iterdir()).read_bytes()
    choose(page, picture)
    assert answer(page) == "squares"
    page.click("summary")
    page.select_option("#label", "lying")
    page.check("#consent")
    assert corrections(cloud) == {}
    page.click("#send")
    expect(page.locator("#thanks")).to_contain_text("Stored as lying, number ")
    number = page.inner_text("#thanks").rpartition(" ")[2].rstrip(".")
    stored = corrections(cloud)
    assert stored.pop(f"lying/{number}.jpg") == sent(page)
    record = json.loads(stored.pop(f".records/{number}.json"))
    assert (record["id"], record["label"], record["predicted"]) == (number, "lying", "squares")
    assert stored == {}


def test_an_endpoint_that_is_gone_is_told(page, cloud):
    cloud.client("sagemaker").delete_endpoint(EndpointName=cloud.run)
    choose(page, encode(pattern(0)))
    expect(page.locator("#sentence")).to_have_text("The model is not available right now.")
    expect(page.locator("#retry")).to_contain_text("Try again in ")
    assert page.inner_text("#reference").startswith("Reference: ")


# ---- the picture in README.md ----


@pytest.mark.skipif("WEB_SCREENSHOT" not in os.environ, reason="WEB_SCREENSHOT names no file")
def test_the_screenshot_of_make_web(visit, data_dir, tmp_path):
    """Trains on photos, which takes minutes: WEB_SCREENSHOT=docs/web_page.png says where to."""
    environment = {**os.environ, "DATA_DIR": str(data_dir), "LOCAL_CLOUD_HOME": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "studio.web", "--data", "listings"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    )
    try:
        said = ""
        while "The page is at" not in said:
            said = process.stdout.readline()
            assert said, "it ended before the page was there"
        page = visit(said.split()[-1], viewport={"width": 1000, "height": 760})
        for button in page.locator("#samples button").all():
            button.click()
            expect(page.locator("#answer")).to_have_attribute("aria-busy", "false")
            answer(page)
        page.mouse.move(0, 0)
        page.screenshot(
            path=ROOT / os.environ["WEB_SCREENSHOT"], full_page=True, animations="disabled"
        )
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        subprocess.run([sys.executable, "-m", "local_cloud", "reset"], cwd=ROOT, env=environment)
