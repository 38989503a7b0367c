import base64
import inspect
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from samples import encode, huge_png, noise

import inference
from vision.classifier import load_classifier
from vision.data import list_split, load_split
from vision.distributed import Group
from vision.feeds import PictureFeed
from vision.training import logits_of


class Context:
    """What a model server hands to a handler, as far as the handlers use it."""

    status = 200

    def set_response_status(self, code=200, phrase="", idx=0):
        self.status = code
        assert phrase


@pytest.fixture(scope="module")
def model(model_dir):
    return inference.model_fn(str(model_dir))


def ask(model, body, content_type="image/png", accept="application/json"):
    """Return (status, answer) of one request, through the handlers as a server calls them."""
    context = Context()
    data = inference.input_fn(body, content_type, context)
    prediction = inference.predict_fn(data, model, context)
    text, kind = inference.output_fn(prediction, accept, context)
    assert kind == "application/json"
    return context.status, json.loads(text)


def in_json(data):
    return json.dumps({"image": base64.b64encode(data).decode()})


def test_the_handlers_have_the_numbers_of_parameters_that_the_toolkit_counts():
    count = {"model_fn": 1, "input_fn": 3, "predict_fn": 3, "output_fn": 3}
    for name, expected in count.items():
        assert len(inspect.signature(getattr(inference, name)).parameters) == expected


def test_the_same_picture_has_the_same_probabilities_everywhere(model, model_dir, stripes):
    """Validation while training, evaluate.py and the endpoint: one picture, one answer."""
    entries = list_split(stripes / "test")
    split = load_split(entries, model.class_names, 16, 1)
    feed = PictureFeed(split, model.preprocessing)
    logits = logits_of(model.model, feed, torch.device("cpu"), Group())
    as_validation = torch.softmax(logits / model.temperature, 1)
    reloaded = load_classifier(model_dir)
    in_report = reloaded.probabilities(split.images)
    for i, entry in enumerate(entries):
        for body, kind in ((entry.read(), "image/png"), (in_json(entry.read()), inference.JSON)):
            status, answer = ask(model, body, kind)
            assert status == 200
            scores = torch.tensor([answer["scores"][name] for name in model.class_names])
            assert torch.allclose(scores.double(), in_report[i], atol=1e-5)
            assert torch.allclose(scores.double(), as_validation[i].double(), atol=1e-5)


def test_the_answer(model, stripes):
    status, answer = ask(model, (stripes / "test" / "standing" / "000.png").read_bytes())
    assert status == 200
    assert list(answer) == ["label", "confidence", "scores"]
    assert answer["label"] == max(answer["scores"], key=answer["scores"].get)
    assert answer["confidence"] == max(answer["scores"].values())
    assert sum(answer["scores"].values()) == pytest.approx(1)
    assert set(answer["scores"]) == {"lying", "squares", "standing"}


def test_lying_stripes_seen_on_their_side_are_standing(model):
    """A test of direction: turning the picture swaps two classes and leaves the third."""
    rows, columns = np.indices((16, 16)) // 2 % 2
    for pixels, label in ((rows, "lying"), (columns, "standing"), (rows ^ columns, "squares")):
        assert ask(model, encode(40 + 120 * pixels))[1]["label"] == label


def test_colour_exif_and_size_do_not_change_the_answer(model):
    rows = np.indices((16, 16))[0] // 2 % 2 * 120 + 40
    plain = ask(model, encode(rows))[1]["scores"]
    exif = Image.Exif()
    exif[0x0112] = 8
    variants = [
        encode(np.dstack([rows] * 3)),
        encode(np.rot90(rows, -1), exif=exif),
        encode(np.pad(rows, ((0, 0), (20, 20)), constant_values=200)),
        encode(np.dstack([rows] * 3), "WEBP", lossless=True),
    ]
    for body in variants:
        assert ask(model, body)[1]["scores"] == pytest.approx(plain, abs=1e-5)


@pytest.mark.parametrize("kind", ["image/jpeg", "application/x-image", "IMAGE/PNG; q=1"])
def test_other_names_of_pictures_are_accepted(model, kind):
    assert ask(model, encode(noise(), "JPEG"), kind)[0] == 200


@pytest.mark.parametrize("accept", [None, "", "*/*", "application/*;q=0.8", "text/html, */*;q=0.1"])
def test_whoever_takes_json_gets_it(model, accept):
    assert ask(model, encode(noise()), accept=accept)[0] == 200


JPEG = encode(noise(200, 200), "JPEG")
REFUSED = {
    "empty": (b"", "image/png", 400),
    "text": (b"hello", "image/png", 400),
    "truncated": (JPEG[: len(JPEG) // 2], "image/jpeg", 400),
    "gif": (encode(noise(), "GIF"), "image/png", 400),
    "no JSON": ("{", "application/json", 400),
    "deep JSON": ("[" * 100_000, "application/json", 400),
    "list": ("[1]", "application/json", 400),
    "null": ('{"image": null}', "application/json", 400),
    "no image": ('{"picture": "x"}', "application/json", 400),
    "no base64": ('{"image": "***"}', "application/json", 400),
    "an address": ('{"image": "https://example.com/a.png"}', "application/json", 400),
    "a file": ('{"image": "file:///etc/passwd"}', "application/json", 400),
    "huge header": (huge_png(), "image/png", 413),
    "huge header in JSON": (in_json(huge_png()), "application/json", 413),
    "too many bytes": (b"\xff" * 6_500_000, "image/jpeg", 413),
    "too much base64": (in_json(b"\xff" * 6_500_000), "application/json", 413),
    "too much JSON": (" " * 9_000_000, "application/json", 413),
    "csv": (b"1,2", "text/csv", 415),
    "no type": (JPEG, None, 415),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_request_is_one_sentence_with_its_status(model, case):
    body, kind, expected = REFUSED[case]
    status, answer = ask(model, body, kind)
    assert status == expected
    assert list(answer) == ["error"]
    assert "\n" not in answer["error"]
    assert "Traceback" not in answer["error"]


def test_an_answer_that_is_not_wanted_is_refused(model):
    status, answer = ask(model, encode(noise()), accept="text/csv")
    assert status == 406
    assert list(answer) == ["error"]


def test_without_a_context_the_refusal_is_still_the_answer(model):
    prediction = inference.predict_fn(inference.input_fn(b"x", "image/png"), model)
    assert list(json.loads(inference.output_fn(prediction, None)[0])) == ["error"]


def test_a_fault_of_ours_is_raised():
    with pytest.raises(AttributeError):
        inference.predict_fn(encode(noise()), None)


def test_under_the_threshold_the_label_is_null(model_dir):
    model = load_classifier(model_dir)
    model.threshold = 1.1
    status, answer = ask(model, encode(noise()))
    assert status == 200
    assert answer["label"] is None
    assert answer["confidence"] == max(answer["scores"].values())


def test_the_code_inside_the_artifact_answers_on_its_own(model_dir, stripes, tmp_path, run_script):
    """As in the container: nothing of the project but the artifact, from any folder."""
    shutil.copytree(model_dir, tmp_path / "model")
    picture = stripes / "test" / "lying" / "000.png"
    command = ["code/inference.py", "--model-dir", ".", picture]
    process = subprocess.run(
        [sys.executable, *command], cwd=tmp_path / "model", capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    ours = run_script("inference.py", "--model-dir", model_dir, picture)
    assert json.loads(process.stdout) == json.loads(ours.stdout)


def ask_here(*argv):
    args = inference.get_args_parser().parse([str(word) for word in argv])
    return inference.run(inference.main, args)


def test_the_command_line(model_dir, tmp_path, capsys):
    assert ask_here("--model-dir", model_dir, "--dry-run") == 0
    assert set(json.loads(capsys.readouterr().out)) == {"label", "confidence", "scores"}
    (tmp_path / "text.png").write_text("hello")
    assert ask_here("--model-dir", model_dir, tmp_path / "text.png") == 1
    assert set(json.loads(capsys.readouterr().out)) == {"error"}
    assert ask_here("--model-dir", model_dir) == 1
    assert "name one picture" in capsys.readouterr().err
    assert ask_here("--model-dir", model_dir, tmp_path / "absent.png") == 1
    assert "absent.png cannot be read" in capsys.readouterr().err
    assert ask_here("--model-dir", tmp_path, tmp_path / "text.png") == 1
    assert "holds no model.json" in capsys.readouterr().err


def test_each_worker_takes_its_share_of_the_cores(model_dir, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    before = torch.get_num_threads()
    try:
        for workers, threads in (("", 1), ("1", 4), ("2", 2), ("9", 1)):
            monkeypatch.setenv("SAGEMAKER_MODEL_SERVER_WORKERS", workers)
            inference.model_fn(model_dir)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_pictures_with_odd_modes_are_answered(model):
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16"):
        buffer = io.BytesIO()
        Image.new(mode, (20, 30)).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
        assert ask(model, buffer.getvalue())[0] == 200, mode
