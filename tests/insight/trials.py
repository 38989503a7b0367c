"""Trainings that break on purpose, and near misses, recorded with smdebug's own hook.

    PYTHONPATH=. python tests/insight/trials.py    # writes docs/rules.md again

Tiny networks on scikit-learn's digits, a few dozen steps each. Collections and names of what is
saved are those of the project's own training.
"""

import functools
import itertools
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from smdebug.core.modes import ModeKeys
from smdebug.core.reduction_config import ReductionConfig
from smdebug.core.save_config import SaveConfig
from smdebug.pytorch import Hook
from torch import nn

from insight.findings import Finding, Status
from insight.rules import RULES, check

logging.getLogger("smdebug").setLevel(logging.ERROR)

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "rules.md"
REDUCED = ReductionConfig(
    reductions=["min", "max", "mean", "std", "variance"],
    abs_reductions=["mean", "max"],
    norms=["l2"],
)
WHOLE = ReductionConfig(save_raw_tensor=True)
# What smdebug has no names for, or saves whole: collection, tensors, form.
COLLECTIONS = {
    "losses": ("CrossEntropyLoss_output", WHOLE),
    "answers": ("CrossEntropyLoss_input", WHOLE),
    "samples": ("^sample/", WHOLE),
    "activity": ("^activity/", WHOLE),
    "relu_input": (r"relu_input_\d+$", REDUCED),
    "relu_output": (r"relu_output_\d+$", REDUCED),
}
SAMPLE = 1024


def record(
    folder: Path,
    network: nn.Module,
    *,
    lr: float,
    data: tuple[torch.Tensor, torch.Tensor] | None = None,
    save: str = "",
    save_every: int = 1,
    steps: int = 24,
    batch: int = 64,
    optimizer: Callable = torch.optim.SGD,
    parameters: list[nn.Parameter] | None = None,
    share: Callable[[float], float] = lambda done: 1.0,
    validate_every: int = 0,
    balance: str = "",
) -> torch.Tensor:
    """Train with a hook that writes to `folder`; return by class the accuracy on 500 new digits.

    `save` names collections beside the losses, `share` is the learning rate's share of its peak
    after a share of all steps, `balance` is "weights", "sampler" or nothing.
    """
    X, y = data or digits()
    X_new, y_new = _all_digits()[0][-500:], _all_digits()[1][-500:]
    generator = torch.Generator().manual_seed(0)
    update = optimizer(parameters or network.parameters(), lr=lr)
    weights = len(y) / (10 * torch.bincount(y, minlength=10)).float()
    criterion = nn.CrossEntropyLoss(weights if balance == "weights" else None, reduction="none")
    hook = _hook(folder, ["losses", *save.split()], save_every)
    sampled = _watch(hook, network, save)
    hook.register_module(network)
    hook.register_loss(criterion)
    drawn = weights[y] if balance == "sampler" else torch.ones(len(y))
    for step in range(steps):
        numbers = torch.multinomial(
            drawn, min(batch, len(y)), balance == "sampler", generator=generator
        )
        update.param_groups[0]["lr"] = lr * share(step / steps)
        hook.set_mode(ModeKeys.TRAIN)
        network.train()
        if step % save_every == 0:
            for name, parameter in sampled.items():
                hook.save_tensor(f"sample/{name}", _sample(parameter), "samples")
            hook.save_scalar("lr", update.param_groups[0]["lr"])
        losses = criterion(network(X[numbers]), y[numbers])
        update.zero_grad()
        losses.mean().backward()
        update.step()
        if validate_every and step % validate_every == validate_every - 1:
            hook.set_mode(ModeKeys.EVAL)
            network.eval()
            with torch.inference_mode():
                criterion(network(X_new), y_new)
    hook.close()
    with torch.inference_mode():
        right = network.eval()(X_new).argmax(1) == y_new
    return torch.stack([right[y_new == number].float().mean() for number in range(10)])


@functools.cache
def _all_digits() -> tuple[torch.Tensor, torch.Tensor]:
    X, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return torch.tensor(X / 16, dtype=torch.float32)[order], torch.tensor(y)[order]


def digits(count: int = 1297, *, rare: int | None = None, wrong: float = 0.0):
    """Return the first digits, 0 to 1 (N, 64), and labels (N).

    Of the classes 8 and 9 only `rare` each, of the labels a share `wrong` is drawn at random.
    """
    X, y = _all_digits()
    X, y = X[:count], y[:count].clone()
    if rare is not None:
        common = [torch.nonzero(y == number)[:, 0] for number in range(10)]
        kept = torch.cat([n if number < 8 else n[:rare] for number, n in enumerate(common)])
        X, y = X[kept], y[kept]
    generator = torch.Generator().manual_seed(1)
    lies = torch.rand(len(y), generator=generator) < wrong
    y[lies] = torch.randint(10, (int(lies.sum()),), generator=generator)
    return X, y


def layers(
    *sizes: int,
    activation: type[nn.Module] = nn.ReLU,
    init: Callable[[torch.Tensor], object] | None = None,
    norm: bool = False,
) -> nn.Sequential:
    """Build linear layers of these sizes with an activation between them."""
    torch.manual_seed(0)
    network = nn.Sequential()
    for number, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        linear = nn.Linear(inputs, outputs)
        if init:
            init(linear.weight)
            nn.init.zeros_(linear.bias)
        network.add_module(f"linear{number}", linear)
        if number < len(sizes) - 2:
            if norm:
                network.add_module(f"norm{number}", nn.BatchNorm1d(outputs))
            network.add_module(f"{number}_{activation.__name__.lower()}", activation())
    return network


def _hook(folder: Path, collections: list[str], interval: int) -> Hook:
    hook = Hook(
        str(folder),
        include_collections=collections,
        save_config=SaveConfig(save_interval=interval),
        reduction_config=REDUCED,
    )
    for name in set(collections) & set(COLLECTIONS):
        regex, reductions = COLLECTIONS[name]
        hook.get_collection(name).include(regex)
        hook.get_collection(name).reduction_config = reductions
    return hook


def _watch(hook: Hook, network: nn.Module, save: str) -> dict[str, nn.Parameter]:
    """Have gradients sampled and activity measured; return the parameters to sample by name.

    Before the network is registered: smdebug's hooks, which come after these, write it.
    """
    name_of = {p: f"{network._get_name()}_{name}" for name, p in network.named_parameters()}
    if "activity" in save:
        for name, module in network.named_modules():
            if isinstance(module, nn.ReLU):
                module.register_forward_hook(functools.partial(_save_activity, hook, name))
    if "samples" not in save:
        return {}
    for parameter, name in name_of.items():
        if parameter.requires_grad:
            parameter.register_hook(functools.partial(_save_gradient, hook, name))
    return {name: parameter for parameter, name in name_of.items()}


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().flatten()[:SAMPLE].clone()


def _save_gradient(hook: Hook, name: str, gradient: torch.Tensor) -> None:
    hook.save_tensor(f"sample/gradient/{name}", _sample(gradient), "samples")


def _save_activity(hook: Hook, name: str, module: nn.Module, inputs, outputs) -> None:
    hook.save_tensor(f"activity/{name}", 100 * (outputs > 0).float().mean(0), "activity")


# The cases, by rule: a training that breaks, a near miss, and where there is one the fix.


@dataclass(frozen=True)
class Case:
    """A training to record: what it is, in words, and how to make it."""

    said: str
    make: Callable[[Path], torch.Tensor]


def wrong_start(shift: float, share: float = 1.0) -> nn.Sequential:
    """Build a network whose second hidden layer begins with biases of -`shift`, for a share."""
    network = layers(64, 32, 32, 10)
    with torch.no_grad():
        network.linear1.bias[: round(32 * share)] = -shift
    return network


def zeros(*names: str) -> nn.Sequential:
    """Build a network of which these layers begin with zeros."""
    network = layers(64, 32, 32, 10)
    for name in names:
        for parameter in network.get_submodule(name).parameters():
            nn.init.zeros_(parameter)
    return network


def frozen(name: str) -> nn.Sequential:
    network = layers(64, 32, 32, 10)
    network.get_submodule(name).requires_grad_(False)
    return network


def forgetful(folder: Path) -> torch.Tensor:
    network = layers(64, 32, 32, 10)
    known = [*network.linear0.parameters(), *network.linear2.parameters()]
    saved = "weights gradients samples"
    return SGD(folder, network, save=saved, steps=12, parameters=known)


WIDE = functools.partial(layers, 64, 64, 64, 10)
DEEP = functools.partial(layers, 64, *[32] * 5, 10)
NINE = functools.partial(layers, 64, *[16] * 9, 10)
ADAM = functools.partial(record, optimizer=torch.optim.AdamW, lr=0.01, steps=60)
SGD = functools.partial(record, optimizer=torch.optim.SGD, lr=0.1)


def case(said: str, network: Callable[[], nn.Module], train: Callable = SGD, **options) -> Case:
    return Case(said, lambda folder: train(folder, network(), **options))


def normal(deviation: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return functools.partial(nn.init.normal_, std=deviation)


def cases() -> dict[str, dict[str, Case]]:
    """Return by rule what must fire it ("broken"), what must not ("near"), and what mends it."""
    kaiming = functools.partial(nn.init.kaiming_normal_, nonlinearity="relu")
    tanh = functools.partial(NINE, activation=nn.Tanh, init=nn.init.xavier_uniform_, norm=True)
    sparse = {"steps": 60, "save_every": 6}
    start = {"save": "answers gradients relu_input samples", **sparse}
    short = {"save": "weights gradients relu_output", "steps": 8}
    moves = {"save": "weights samples", "steps": 6}
    lies = {"data": digits(130, wrong=0.4), "validate_every": 3, "lr": 0.02}
    rare = {"save": "answers", "validate_every": 30}
    normed = case(
        "as many tanh layers (Xavier), each with a batch norm, so that biases have no gradient",
        tanh,
        save="gradients",
        **sparse,
    )
    return {
        "VanishingGradient": {
            "broken": case(
                "nine sigmoid layers",
                functools.partial(NINE, activation=nn.Sigmoid),
                save="gradients",
                **sparse,
            ),
            "near": normed,
            "fixed": normed,
        },
        "ExplodingTensor": {
            "broken": case(
                "a learning rate of 1000",
                functools.partial(WIDE, activation=nn.LeakyReLU),
                lr=1000,
                **short,
            ),
            "near": case(
                "a learning rate of 2: the loss jumps, but every value is a number",
                functools.partial(WIDE, activation=nn.LeakyReLU),
                lr=2,
                **short,
            ),
        },
        "AllZero": {
            "broken": case(
                "two layers begin with zeros, one behind the other",
                functools.partial(zeros, "linear1", "linear2"),
                **short,
            ),
            "near": case(
                "only the last layer begins with zeros",
                functools.partial(zeros, "linear2"),
                **short,
            ),
        },
        "DeadRelu": {
            "broken": case(
                "all biases of a layer begin at -5",
                functools.partial(wrong_start, 5),
                ADAM,
                save="activity",
            ),
            "near": case(
                "40% of them do",
                functools.partial(wrong_start, 5, 0.4),
                ADAM,
                save="activity",
            ),
            "fixed": case(
                "they begin at 0", functools.partial(wrong_start, 0), ADAM, save="activity"
            ),
        },
        "PoorWeightInitialization": {
            "broken": case(
                "five hidden layers, all weights drawn with a standard deviation of 0.01",
                functools.partial(DEEP, init=normal(0.01)),
                **start,
            ),
            "near": case(
                "PyTorch's own initialisation: the variance shrinks, too, but the loss falls",
                DEEP,
                ADAM,
                **start | {"steps": 10, "save_every": 1},
            ),
            "fixed": case("Kaiming initialisation", functools.partial(DEEP, init=kaiming), **start),
        },
        "LossNotDecreasing": {
            "broken": case(
                "a learning rate 100 times too high", WIDE, ADAM, lr=1.0, save="answers"
            ),
            "near": case(
                "batches of 4, so that the loss of one step is often twice that before",
                WIDE,
                ADAM,
                lr=0.003,
                batch=4,
                save="answers",
            ),
            "fixed": case("a hundredth of it", WIDE, ADAM, save="answers"),
        },
        "Overfit": {
            "broken": case(
                "60 pictures to learn from",
                WIDE,
                ADAM,
                data=digits(60),
                save="answers",
                validate_every=10,
            ),
            "near": case(
                "1,297 pictures: the validation loss is above that of training, but low",
                WIDE,
                ADAM,
                save="answers",
                validate_every=20,
                steps=120,
            ),
        },
        "Overtraining": {
            "broken": case("40% of 130 labels are wrong", WIDE, ADAM, steps=78, **lies),
            "near": case(
                "the same training, ended after 6 evaluations", WIDE, ADAM, steps=18, **lies
            ),
        },
        "ClassImbalance": {
            "broken": case(
                "8 and 9 have 10 pictures, the others about 130",
                WIDE,
                ADAM,
                data=digits(rare=10),
                **rare,
            ),
            "near": case("8 and 9 have 20 pictures", WIDE, ADAM, data=digits(rare=20), **rare),
            "fixed": case(
                "10 pictures, and a sampler that draws every class equally often",
                WIDE,
                ADAM,
                data=digits(rare=10),
                balance="sampler",
                **rare,
            ),
            "weighted": case(
                "10 pictures, and class weights in the loss",
                WIDE,
                ADAM,
                data=digits(rare=10),
                balance="weights",
                **rare,
            ),
        },
        "WeightUpdateRatio": {
            "broken": case("a learning rate 500 times too high", WIDE, ADAM, lr=5.0, **moves),
            "near": case("50 times too high", WIDE, ADAM, lr=0.5, **moves),
        },
        "UnchangedTensor": {
            "broken": Case("the optimiser was given two of three layers", forgetful),
            "near": case(
                "a layer frozen on purpose, and a learning rate that ends at zero",
                functools.partial(frozen, "linear0"),
                save="weights gradients samples",
                steps=12,
                share=lambda done: max(0.0, 1 - 2 * done),
            ),
        },
    }


@dataclass(frozen=True)
class Result:
    """A case that was recorded: what its rule found, and the accuracy (10 classes) it reached."""

    case: Case
    finding: Finding
    accuracy: torch.Tensor


def results(folder: Path) -> dict[str, dict[str, Result]]:
    """Record every case below `folder` and check it with its rule."""
    known: dict[Case, torch.Tensor] = {}
    found: dict[str, dict[str, Result]] = {}
    for rule, kinds in cases().items():
        found[rule] = {}
        for kind, each in kinds.items():
            place = folder / f"{rule}-{list(kinds.values()).index(each)}"
            if each not in known:
                known[each] = each.make(place)
            found[rule][kind] = Result(each, check(str(place), [rule])[0], known[each])
    return found


HEAD = """# The debugger's rules, proved

What each rule computes, after which source, and where it differs from the rule of the same name in
Amazon SageMaker Debugger is told in its docstring in [insight/rules/](../insight/rules). Here is
every rule on a training that has to fire it and on a near miss that must not, then what the
training gains where the rule's advice is followed. All of them are tiny networks on scikit-learn's
digits, recorded by smdebug's hook; `PYTHONPATH=. python tests/insight/trials.py` trains them and
writes this page, and `tests/insight/test_rules.py` checks that it is what comes out.
"""


def document(found: dict[str, dict[str, Result]]) -> str:
    """Return docs/rules.md."""
    proof = [("Rule", "Fires on", "Evidence", "Is quiet on")]
    for rule, kinds in found.items():
        broken, near = kinds["broken"], kinds["near"]
        _expect(broken, Status.ISSUES)
        _expect(near, Status.NO_ISSUES)
        said = broken.finding.evidence[0].said
        proof.append((rule, broken.case.said, said, near.case.said))
    gains = [("Broken", "Rule that fires", "Mended", "Measured", "Before", "After")]
    for rule, kinds in found.items():
        mended = [kind for kind in kinds if kind not in ("broken", "near")]
        gains += [_gain(rule, kinds["broken"], kinds[kind]) for kind in mended]
    thresholds = [("Rule", "Parameters and their defaults")]
    for name, rule in RULES.items():
        shown = (f"`{key}` {_default(value)}" for key, value in rule.DEFAULTS.items())
        thresholds.append((name, ", ".join(shown)))
    return "\n".join(
        [
            HEAD,
            "## Every rule, both ways\n",
            *_table(proof),
            "\n## The advice, followed\n",
            "The mended training has as many steps, and its rule is quiet.\n",
            *_table(gains),
            "\n## Parameters\n",
            'As `check(folder, Overfit={"patience": 2})`.\n',
            *_table(thresholds),
            "",
        ]
    )


def _expect(result: Result, status: Status) -> None:
    if result.finding.status != status:
        raise RuntimeError(f"{result.case.said}: {result.finding}")


def _gain(rule: str, broken: Result, fixed: Result) -> tuple[str, ...]:
    _expect(fixed, Status.NO_ISSUES)
    measured, chosen = "accuracy on 500 new digits", slice(None)
    if rule == "ClassImbalance":
        measured, chosen = "recall of 8 and 9", slice(8, 10)
    before, after = (f"{each.accuracy[chosen].mean():.0%}" for each in (broken, fixed))
    return broken.case.said, rule, fixed.case.said, measured, before, after


def _default(value: object) -> str:
    if isinstance(value, list):
        return " or ".join(f"`{each}`" for each in value)
    if isinstance(value, bool | None):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    rows = [rows[0], ("---",) * len(rows[0]), *rows[1:]]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        text = document(results(Path(folder)))
    DOCS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
