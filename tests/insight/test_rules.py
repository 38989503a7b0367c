"""The debugger's rules on real trainings: what fires, what does not, and whether advice helps."""

import json
import re
import shutil

import boto3
import pytest
import torch
from moto.server import ThreadedMotoServer
from smdebug.core.reduction_config import ReductionConfig
from smdebug.core.save_config import SaveConfig
from smdebug.pytorch import Hook
from smdebug.rules.rule_invoker import invoke_rule
from torch import nn
from trials import ADAM, DOCS, SGD, WHOLE, WIDE, digits, document, layers, record, results

from insight.findings import Evidence, Finding, Status
from insight.rules import RULES, VanishingGradient, check
from insight.tensors import Tensors, open_trial
from vision.arguments import add_arguments
from vision.cli import ArgumentParser
from vision.errors import ExpectedError

EVERYTHING = "weights biases gradients relu_input relu_output answers samples activity"
# What the evidence of the broken trainings has to name, by what was broken in them.
CULPRITS = {
    "VanishingGradient": {f"gradient/Sequential_linear{number}.weight" for number in range(4)},
    "AllZero": {
        "1_relu_output_0",
        "Sequential_linear1.weight",
        "Sequential_linear2.weight",
        "gradient/Sequential_linear0.weight",
        "gradient/Sequential_linear1.weight",
        "gradient/Sequential_linear2.weight",
    },
    "DeadRelu": {"1_relu"},
    "ClassImbalance": {"labels", "class 8"},
    "WeightUpdateRatio": {f"Sequential_linear{number}.weight" for number in range(3)},
    "UnchangedTensor": {"Sequential_linear1.weight"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trials")


@pytest.fixture(scope="module")
def found(folder):
    return results(folder)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """A training that does well: convolutions with batch norm, warm-up, a fading learning rate."""
    torch.manual_seed(0)
    network = nn.Sequential()
    network.add_module("unflatten", nn.Unflatten(1, (1, 8, 8)))
    for number, (inputs, outputs) in enumerate(((1, 8), (8, 16))):
        # Its bias has no gradient: the batch norm behind it takes the mean away.
        network.add_module(f"conv{number}", nn.Conv2d(inputs, outputs, 3, 2, 1))
        network.add_module(f"norm{number}", nn.BatchNorm2d(outputs))
        network.add_module(f"{number}_relu", nn.ReLU())
    network.add_module("head", nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    folder = tmp_path_factory.mktemp("healthy") / "tensors"
    accuracy = record(
        folder,
        network,
        lr=0.02,
        optimizer=torch.optim.AdamW,
        save=EVERYTHING,
        steps=100,
        save_every=4,
        validate_every=20,
        share=lambda done: min(1.0, 4 * done) * (1 - done),
    )
    assert accuracy.mean() > 0.9
    return folder


def by_rule(findings):
    return {finding.rule: finding for finding in findings}


@pytest.mark.parametrize("rule", RULES)
def test_rule_fires_where_it_must(found, rule):
    finding = found[rule]["broken"].finding
    assert finding.status == Status.ISSUES, finding
    assert finding.kind == "debugger"
    assert finding.first_step is not None
    assert finding.first_step == min(each.step for each in finding.evidence)
    assert finding.meaning
    assert "--" in finding.advice
    for each in finding.evidence:
        assert re.fullmatch(r"[A-Z].*(\d|NaN).*\.", each.said), each
    if rule in CULPRITS:
        assert {each.name for each in finding.evidence} == CULPRITS[rule]


@pytest.mark.parametrize("rule", RULES)
def test_near_misses_are_quiet(found, rule):
    quiet = {kind: each for kind, each in found[rule].items() if kind != "broken"}
    for kind, each in quiet.items():
        assert each.finding.status == Status.NO_ISSUES, (kind, each.finding)
        assert each.finding.checked


def test_what_is_advised_is_a_flag_of_training():
    parser = ArgumentParser("Train.")
    add_arguments(parser)
    for rule in RULES.values():
        for flag in re.findall(r"--[a-z-]+", rule.ADVICE):
            assert flag in parser._option_string_actions, (rule, flag)


def test_following_the_advice_makes_the_run_better(found):
    better = {
        rule: kinds["fixed"].accuracy.mean() - kinds["broken"].accuracy.mean()
        for rule, kinds in found.items()
        if "fixed" in kinds
    }
    rare = [found["ClassImbalance"][kind].accuracy[8:].mean() for kind in ("broken", "fixed")]
    better["ClassImbalance"] = rare[1] - rare[0]
    assert len(better) >= 3
    assert all(gain > 0.2 for gain in better.values()), better


def test_the_page_is_what_comes_out(found):
    """The same words; numbers may differ as they do from one processor to another."""
    number = re.compile(r"\d+(?:\.\d+)?(?:e[+-]\d+)?")
    written, now = DOCS.read_text(encoding="utf-8"), document(found)
    assert number.sub("#", written) == number.sub("#", now)
    for a, b in zip(number.findall(written), number.findall(now)):
        assert float(a) == pytest.approx(float(b), rel=0.5), (a, b)


def test_a_healthy_training_is_quiet(healthy):
    for finding in check(healthy):
        assert finding.status == Status.NO_ISSUES, finding
        assert finding.checked


def test_a_trial_is_read_file_by_file_and_never_waited_for(healthy, tmp_path):
    """Also where the job was killed, or is SageMaker's: there is no file that marks its end."""
    shutil.copytree(healthy, tmp_path / "tensors")
    (tmp_path / "tensors" / "training_job_end.ts").unlink()
    trial = open_trial(tmp_path / "tensors")
    assert check(trial) == check(healthy)
    assert len(trial.index_reader.files) == len(trial.steps())


def test_a_trial_on_s3(healthy, monkeypatch):
    server = ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="bucket")
        for path in filter(lambda path: path.is_file(), healthy.rglob("*")):
            s3.upload_file(str(path), "bucket", f"job/tensors/{path.relative_to(healthy)}")
        assert check("s3://bucket/job/tensors/") == check(healthy)
        with pytest.raises(ExpectedError, match="no tensors in s3://bucket/other"):
            check("s3://bucket/other")
    finally:
        server.stop()


def test_whole_tensors_of_a_plain_hook_are_read_as_well(tmp_path):
    """No mode, no reductions, no samples: what a script of the reader's own may have saved."""
    X, y = digits(256)
    network = layers(64, 32, 32, 10)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(network.linear2.parameters(), lr=0.1)
    every_step = SaveConfig(save_interval=1)
    hook = Hook(str(tmp_path / "tensors"), save_all=True, save_config=every_step)
    hook.register_module(network)
    hook.register_loss(criterion)
    for _ in range(12):
        optimizer.zero_grad()
        criterion(network(X), y).backward()
        optimizer.step()
    hook.close()
    found = by_rule(check(tmp_path / "tensors"))
    unchanged = {each.name for each in found["UnchangedTensor"].evidence}
    assert unchanged == {"Sequential_linear0.weight", "Sequential_linear1.weight"}
    for rule in ("VanishingGradient", "ExplodingTensor", "AllZero", "DeadRelu"):
        assert found[rule].status == Status.NO_ISSUES, found[rule]
        assert found[rule].checked == 12
    for rule in ("Overfit", "Overtraining"):
        assert found[rule].status == Status.NOT_CHECKED
        assert "saved no losses of both training and validation" in found[rule].meaning


def test_parameters_come_as_values_or_as_the_service_s_text(found, folder):
    trial = open_trial(folder / "VanishingGradient-0")
    assert check(trial, VanishingGradient={"threshold": 1e-12})[0].status == Status.NO_ISSUES
    text = by_rule(check(trial, VanishingGradient={"threshold": "1e-12"}))["VanishingGradient"]
    assert text.parameters == {"threshold": 1e-12}
    finding = check(trial, ["ExplodingTensor"], ExplodingTensor={"only_nan": "True"})[0]
    assert finding.parameters["only_nan"] is True
    parts = ["a{1,2}", "b[,(]", "(c,(d,))", r"e\("]
    several = {"ExplodingTensor": {"tensor_regex": ",".join(parts)}}
    assert check(trial, [*several], **several)[0].parameters["tensor_regex"] == parts
    with pytest.raises(ExpectedError, match="has no parameter 'limit': it has threshold"):
        check(trial, VanishingGradient={"limit": 1})
    with pytest.raises(ExpectedError, match="'much' is no value for threshold"):
        check(trial, VanishingGradient={"threshold": "much"})
    with pytest.raises(ExpectedError, match="no rule 'Vanishing'"):
        check(trial, ["Vanishing"])


def test_the_first_step_is_that_of_training_since_when_it_holds(found, tmp_path):
    imbalance = found["ClassImbalance"]["broken"].finding
    # 500 labels are seen after 8 batches of 64, and the first validation follows 30 of them.
    assert {each.name: each.step for each in imbalance.evidence} == {"labels": 7, "class 8": 30}

    class OnlyInTraining(nn.Module):
        def forward(self, x):
            return x if self.training else x / 0

    network = nn.Sequential(WIDE(), OnlyInTraining())
    SGD(tmp_path / "tensors", network, steps=12, validate_every=5)
    (finding,) = check(tmp_path / "tensors", ["ExplodingTensor"])
    assert finding.first_step == 5
    assert finding.evidence[0].said.endswith("at step 0 of validation.")


def test_batches_larger_than_the_samples_are_judged_as_well(tmp_path):
    data = digits(rare=20)
    ADAM(tmp_path / "tensors", WIDE(), data=data, lr=0.0, batch=600, steps=2, save="answers")
    (finding,) = check(tmp_path / "tensors", ["ClassImbalance"])
    assert any(each.name.startswith("class") for each in finding.evidence), finding


@pytest.mark.parametrize(("saved", "status"), [("max", Status.NOT_CHECKED), ("std", Status.ISSUES)])
def test_a_gradient_of_unknown_spread_is_left_out(tmp_path, saved, status):
    """None is saved, or only that of a tensor of one value is unknown."""
    X, y = digits(64)
    network, criterion = layers(1, 1, 10), nn.CrossEntropyLoss()
    hook = Hook(
        str(tmp_path / "tensors"),
        include_collections=["losses", "gradients"],
        save_config=SaveConfig(save_interval=1),
        reduction_config=ReductionConfig(reductions=[saved]),
    )
    hook.get_collection("losses").reduction_config = WHOLE
    hook.register_module(network)
    hook.register_loss(criterion)
    for _ in range(10):
        criterion(network(X[:, 2:3]), y).backward()
    hook.close()
    rule = {"PoorWeightInitialization": {"distribution_range": 100.0}}
    (finding,) = check(tmp_path / "tensors", [*rule], **rule)
    assert finding.status == status, finding
    names = [each.name for each in finding.evidence]
    assert names == (["gradient/Sequential_linear1.weight", "loss"] if names else [])


def test_smdebug_s_own_invoker_runs_the_rules(found, folder):
    trial = open_trial(folder / "VanishingGradient-0")
    rule = VanishingGradient(trial)
    invoke_rule(rule, end_step=trial.steps()[-1] + 1)
    assert rule.finding() == found["VanishingGradient"]["broken"].finding


def test_a_folder_without_tensors_says_so(tmp_path):
    with pytest.raises(ExpectedError, match="--debug true"):
        check(tmp_path)


def test_a_damaged_file_is_an_error_of_the_rules_that_read_it(healthy, tmp_path):
    shutil.copytree(healthy, tmp_path / "tensors")
    last = sorted((tmp_path / "tensors" / "events").rglob("*.tfevents"))[-3]
    last.write_bytes(last.read_bytes()[:100])
    findings = check(tmp_path / "tensors")
    assert [finding.rule for finding in findings] == list(RULES)
    assert {finding.status for finding in findings} <= {Status.ERROR, Status.NO_ISSUES}
    assert by_rule(findings)["ExplodingTensor"].status == Status.ERROR


def test_a_damaged_index_is_told_in_a_sentence(healthy, tmp_path):
    shutil.copytree(healthy, tmp_path / "tensors")
    next((tmp_path / "tensors" / "index").rglob("*.json")).write_text("{")
    with pytest.raises(ExpectedError, match="index of the tensors in"):
        check(tmp_path / "tensors")


def test_a_finding_survives_json():
    evidence = [Evidence("loss", 3, float("nan"), "it is NaN"), Evidence("a", None, 0.5, "half")]
    finding = Finding("R", "debugger", Status.ISSUES, 3, evidence, 9, "m", "--lr", {"t": 1.0})
    values = json.loads(json.dumps(finding.to_dict(), allow_nan=False))
    assert values["status"] == "IssuesFound"
    assert values["evidence"][0]["value"] == "nan"
    again = Finding.from_dict(values)
    assert again.evidence[1] == evidence[1]
    assert again.to_dict() == finding.to_dict()


def test_tensors_by_name(healthy):
    tensors = Tensors(open_trial(healthy))
    step = tensors.train_steps()[0]
    assert tensors.phase_step(step) == 0
    weights = tensors.collected("weights", step=step)
    assert "Sequential_conv1.weight" in weights
    assert all(tensors.learns(name) for name in weights)
    assert tensors.losses(step).shape == (64,)
    sample = tensors.values("Sequential_conv1.weight", step)
    assert (
        tensors.reduction("Sequential_conv1.weight", step, "max", absolute=True)
        == abs(sample).max()
    )
    assert tensors.reduction("nothing", step, "max") is None
