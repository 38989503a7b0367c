import errno
import json
from pathlib import Path

import pytest
import torch

from vision.classifier import Classifier, load_classifier
from vision.errors import ExpectedError
from vision.models import build_model, pretrained_preprocessing
from vision.preprocessing import Preprocessing


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    model = build_model("small_resnet", 1, 3, head_hidden=(6, 5), dropout=0.25)
    preprocessing = Preprocessing(16, 1, (0.3,), (0.4,))
    facts = {"metrics": {"valid_accuracy": 0.5}, "data_hash": "abc"}
    return Classifier("small_resnet", model, preprocessing, ["b", "a", "c"], 1.7, 0.4, 2, facts)


@pytest.fixture
def images():
    return torch.randint(0, 256, (9, 1, 16, 16), dtype=torch.uint8)


def test_what_is_saved_comes_back(classifier, images, tmp_path):
    classifier.save(tmp_path / "model")
    loaded = load_classifier(tmp_path / "model")
    assert torch.equal(loaded.probabilities(images), classifier.probabilities(images))
    assert loaded.description() == classifier.description()
    assert not loaded.model.training
    assert str(loaded.model) == str(classifier.model)
    assert all(p.requires_grad for p in loaded.model.parameters())


def test_loading_downloads_nothing_and_leaves_the_random_numbers_alone(tmp_path, monkeypatch):
    model = build_model("resnet18", 3, 2)
    preprocessing = pretrained_preprocessing("resnet18", 32)
    Classifier("resnet18", model, preprocessing, ["a", "b"]).save(tmp_path)
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    state = torch.get_rng_state()
    loaded = load_classifier(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.preprocessing == preprocessing
    pairs = zip(loaded.model.state_dict().items(), model.state_dict().items(), strict=True)
    assert all(ours[0] == other[0] and torch.equal(ours[1], other[1]) for ours, other in pairs)


def test_the_description_fulfils_the_contract(classifier, tmp_path):
    classifier.save(tmp_path, [(__file__, "inference.py"), (Path(__file__).parent, "vision")])
    described = json.loads((tmp_path / "model.json").read_text())
    assert (described["schema_version"], described["architecture"]) == (3, "small_resnet")
    assert (described["head_hidden"], described["dropout"]) == ([6, 5], 0.25)
    assert described["class_names"] == ["b", "a", "c"]
    assert (described["image_size"], described["channels"]) == (16, 1)
    assert (described["mean"], described["std"]) == ([0.3], [0.4])
    assert (described["temperature"], described["threshold"]) == (1.7, 0.4)
    assert described["data_hash"] == "abc"
    assert (tmp_path / "code" / "inference.py").is_file()
    assert not list((tmp_path / "code").rglob("__pycache__"))


def test_the_company_of_a_picture_does_not_change_its_probabilities(classifier, images):
    whole = classifier.probabilities(images)
    single = torch.cat([classifier.probabilities(image[None]) for image in images])
    assert torch.allclose(whole, single, atol=1e-6)
    assert torch.allclose(whole.sum(1), torch.ones(9, dtype=torch.float64))


@pytest.mark.parametrize(("views", "turned"), [(2, [(3,)]), (4, [(3,), (2,), (2, 3)])])
def test_an_answer_over_several_views_is_the_same_for_a_mirrored_picture(
    classifier, images, views, turned
):
    classifier.answer_views = 1
    assert not torch.allclose(classifier.logits(images), classifier.logits(images.flip(3)))
    single = [classifier.logits(images.flip(sides)) for sides in ((), *turned)]
    classifier.answer_views = views
    assert torch.allclose(classifier.logits(images), sum(single) / views, atol=1e-5)
    for sides in turned:
        same = classifier.logits(images.flip(sides))
        assert torch.allclose(same, classifier.logits(images), atol=1e-5)


def test_saving_replaces_an_older_model_and_leaves_nothing_else(classifier, tmp_path):
    classifier.save(tmp_path)
    classifier.temperature = 2.0
    classifier.save(tmp_path)
    assert load_classifier(tmp_path).temperature == 2.0
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "model.json", "code"}


def test_weights_that_are_not_numbers_are_not_saved(classifier, tmp_path):
    classifier.save(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with torch.no_grad():
        next(classifier.model.parameters()).view(-1)[0] = torch.nan
    with pytest.raises(ExpectedError, match="not finite"):
        classifier.save(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_full_disk_leaves_the_older_model_whole(classifier, tmp_path, monkeypatch):
    classifier.save(tmp_path)
    before = (tmp_path / "model.json").read_text()

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    classifier.temperature = 2.0
    with pytest.raises(OSError, match="No space"):
        classifier.save(tmp_path)
    assert (tmp_path / "model.json").read_text() == before
    assert load_classifier(tmp_path).temperature == 1.7
    assert not list(tmp_path.glob(".partial*"))


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("model.json", None, r"holds no model\.json"),
        ("model.safetensors", None, r"holds no model\.safetensors"),
        ("model.json", "{", "is damaged"),
        ("model.json", "[]", "is damaged"),
        ("model.json", '{"schema_version": 99}', "has version 99"),
        ("model.json", '{"schema_version": 1}', "has version 1, this program reads 3"),
        ("model.json", '{"schema_version": 3, "architecture": "os.system"}', "is damaged"),
        ("model.safetensors", "", "is damaged"),
        ("model.safetensors", "\x80\x04pickled", "is damaged"),
    ],
)
def test_a_damaged_model_is_told_in_one_sentence(classifier, tmp_path, file, content, sentence):
    classifier.save(tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(ExpectedError, match=sentence) as caught:
        load_classifier(tmp_path)
    assert "\n" not in str(caught.value)


def test_under_the_threshold_no_label_is_given(classifier):
    answer = classifier.answer(torch.tensor([0.38, 0.31, 0.31], dtype=torch.float64))
    assert answer == {
        "label": None,
        "confidence": 0.38,
        "scores": {"b": 0.38, "a": 0.31, "c": 0.31},
    }
    assert classifier.answer(torch.tensor([0.1, 0.5, 0.4]))["label"] == "a"
