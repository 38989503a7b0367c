"""Every figure renders without a warning, is labelled, small, and tells the data's own numbers."""

import io
import os
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from studio import explore, plots
from studio.datasets import SPLITS, Dataset

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("error")
CLASSES = ("ankle-boot", "bag", "sac à main")


@pytest.fixture(scope="module", autouse=True)
def _headless():
    with mpl.rc_context({"backend": "Agg"}):
        yield


def made_up(folder):
    rng = np.random.default_rng(0)
    for split in SPLITS:
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for i in range(4):
                shape = (12, 9, 3) if i == 3 else (10, 10)
                pixels = rng.integers(0, 256, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return Dataset("made-up", folder, CLASSES, "a test")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return made_up(tmp_path_factory.mktemp("made-up"))


TRIALS = pd.DataFrame(
    {
        "name": ["t1", "t2", "t3", "t4"],
        "lr": ["0.1", "0.01", "0.001", "0.0001"],
        "batch_size": ["64", "128", "64", "128"],
        "objective": [0.5, 0.9, 0.8, None],
        "status": ["Completed", "Completed", "Stopped", "Failed"],
        "seconds": [3, 4, 5, 1],
    }
)
DEEP_TRIALS = TRIALS.drop(columns="batch_size").assign(
    lr=[0.1, 0.01, 0.001, 0.0001],
    gamma=[0.9, 0.75, 0.6, 0.5],
    model=["resnet18", "resnet34", "resnet18", "resnet34"],
)
CANDIDATES = pd.DataFrame(
    {"accuracy": [0.95, 0.9], "low": [0.9, 0.8], "high": [0.98, 0.96], "milliseconds": [9.9, 5.2]},
    index=pd.Index(["lite", "deep"], name="model"),
)
NETWORKS = DEEP_TRIALS.assign(batch_size=[64, 128, 64, 128])
REPEATED = pd.DataFrame(
    {
        "target": ["alone", "alone", "shared", "shared"],
        "valid_accuracy": [0.3, 0.34, 0.35, 0.37],
        "count_rmse": [1.1, 1.2, 1.0, 1.1],
    }
)
QUARTERS = pd.DataFrame(
    {"errors": [0.6, 0.5, 0.5, 0.4], "low": [0.5, 0.4, 0.4, 0.3], "high": [0.7, 0.6, 0.6, 0.5]},
    index=pd.RangeIndex(1, 5, name="quarter"),
)
STREAM = pd.DataFrame(
    {
        "stretch": ["as they are"] * 8 + ["dark"] * 8 + ["covered"] * 8,
        "confidence": [0.5, 0.6] * 4 + [0.3, 0.2] * 4 + [0.5, 0.6] * 4,
    }
)
# Their figures have one vertical axis for two fields, or one horizontal.
SHARED_HEIGHT = ("tuning_trials", "depth_and_decay", "benchmark", "pace", "repeated")
SHARED_HEIGHT += ("errors_by_quarter",)
SHARED_WIDTH = ("drift",)
HISTORY = pd.DataFrame(
    {
        "epoch": [1, 2, 3],
        "train_loss": [2.0, 1.0, 0.5],
        "train_accuracy": [0.3, 0.6, 0.9],
        "valid_loss": [2.1, 1.2, 1.3],
        "valid_accuracy": [0.28, 0.625, 0.6],
        "lr": [0.1, 0.1, 0.01],
        "seconds": [1.0, 1.0, 1.0],
    }
)
TABLE = pd.DataFrame(
    {"precision": [0.9, 0.8, 1.0], "recall": [0.7, 0.6, 1.0], "f1": [0.79, 0.69, 1.0]},
    index=pd.Index(CLASSES, name="class"),
).assign(support=10)
MATRIX = [[8, 2, 0], [3, 7, 0], [0, 0, 10]]
CURVE = pd.DataFrame(
    {
        "pictures": [30, 30, 120, 120],
        "seed": [0, 1, 0, 1],
        "valid_accuracy": [0.7, 0.8, 0.9, 0.95],
    }
)
CHANGED = pd.DataFrame(
    {"pictures": 20, "kept": [1.0, 0.4], "accuracy": 0.9, "accuracy_changed": [0.9, 0.35]},
    index=["mirrored", "upside down"],
)
PACE = pd.DataFrame(
    {
        "pictures_per_second": [20.0, 5000.0],
        "epoch_seconds": [70.0, 0.28],
        "busy": [0.6, 0.95],
        "overhead": [0.4, float("nan")],
    },
    index=["slow", "quick"],
)
SCORES = {"ankle-boot": 0.7, "bag": 0.2, "sac à main": 0.1}
SQUARE = np.zeros((20, 20, 3), np.uint8)
SURE = {"label": "ankle-boot", "confidence": 0.7, "scores": SCORES}
UNSURE = {"label": None, "confidence": 0.7, "scores": SCORES}


def title(figure):
    return figure.get_suptitle().replace("\n", " ")


def labels(figure):
    return [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes]


def png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight")
    return file.getvalue()


@pytest.fixture(scope="module")
def figures(dataset):
    view = explore.survey(dataset)
    picture = dataset.files("test")[0][0]
    return {
        "class_counts": plots.class_counts(dataset.counts(totals=True)),
        "sample_grid": plots.sample_grid(dataset, per_class=5),
        "mean_pictures": plots.mean_pictures(view.mean_pictures),
        "pixel_histogram": plots.pixel_histogram(view.histogram),
        "duplicates": plots.duplicates(explore.duplicates(view.pictures), dataset),
        "tuning_trials": plots.tuning_trials(TRIALS),
        "depth_and_decay": plots.depth_and_decay(DEEP_TRIALS),
        "benchmark": plots.benchmark(CANDIDATES),
        "architectures": plots.architectures(NETWORKS),
        "repeated": plots.repeated(
            REPEATED, "target", {"valid_accuracy": "accuracy", "count_rmse": "RMSE (items)"}
        ),
        "errors_by_quarter": plots.errors_by_quarter({"sharpness": QUARTERS, "size": QUARTERS / 2}),
        "drift": plots.drift(
            STREAM.assign(sharpness=100 * STREAM["confidence"]),
            {"confidence": "confidence", "sharpness": "sharpness"},
            {"confidence": (0.4, 0.7), "sharpness": (0, 100)},
            4,
            {
                "confidence": {"dark": 11, "covered": None},
                "sharpness": {"dark": None, "covered": None},
            },
        ),
        "named_pictures": plots.named_pictures({"one": picture, "two": picture}),
        "training_curves": plots.training_curves(HISTORY),
        "confusion_matrix": plots.confusion_matrix(MATRIX, CLASSES),
        "per_class": plots.per_class(TABLE),
        "prediction": plots.prediction(picture, SURE, "bag"),
        "predictions": plots.predictions([(picture, SURE, "bag"), (picture, UNSURE, None)]),
        "latency": plots.latency([5, 6, 7, 30]),
        "learning_curve": plots.learning_curve(CURVE, classes=3),
        "changed_pictures": plots.changed_pictures(CHANGED, dict.fromkeys(CHANGED.index, picture)),
        "pace": plots.pace(PACE),
        "explained": plots.explained(dict.fromkeys(("the picture", "bag"), SQUARE), SURE, "bag", 2),
    }


def test_every_figure_renders_small_and_is_not_shown_twice(figures):
    for name, figure in figures.items():
        image = Image.open(io.BytesIO(png(figure)))
        assert image.width <= 850, name
        assert len(png(figure)) < 200_000, name
        assert title(figure), name
    # What pyplot still knows, a notebook shows again under the cell.
    assert plt.get_fignums() == []


def test_the_axes_are_labelled(figures):
    pictures_only = {"duplicates", "mean_pictures", "named_pictures", "predictions", "sample_grid"}
    for name in set(figures) - pictures_only:
        visible = [axes for axes in figures[name].axes if axes.axison]
        assert visible, name
        for axes in visible:
            beside_another = axes in figures[name].axes[1:] and name in SHARED_HEIGHT
            assert axes.get_ylabel() or beside_another, name
            above_another = axes in figures[name].axes[:-1] and name in SHARED_WIDTH
            assert axes.get_xlabel() or axes.get_label() == "<colorbar>" or above_another, name
    assert ("duration of a request (ms)", "requests") in labels(figures["latency"])
    assert ("epoch", "cross-entropy loss (nats)") in labels(figures["training_curves"])


def test_titles_tell_the_numbers_of_the_data(figures):
    said = {name: title(figure) for name, figure in figures.items()}
    assert said["class_counts"] == "36 pictures in 3 classes, 12 each"
    assert said["duplicates"] == "No two pictures of this data set have the same pixels"
    assert said["tuning_trials"].startswith("Best of 4 trials: validation accuracy 90.0%")
    assert "learning rate 0.01 and batches of 128" in said["tuning_trials"]
    assert "90.0% with resnet34 and learning rate 0.01, times 0.75 every" in said["depth_and_decay"]
    assert said["benchmark"] == "lite is the most accurate (95.0%), deep the fastest (5.2 ms)"
    assert "90.0% with resnet34, learning rate 0.01 and batches of 128" in said["architectures"]
    assert "the mean of 2: “shared” is the most accurate with 36.0%" in said["repeated"]
    assert said["errors_by_quarter"].startswith("Errors differ most with sharpness: 40.0% to 60.0%")
    assert said["drift"].endswith("1 of 2 changes are noticed")
    assert said["named_pictures"].startswith("2 pictures of ")
    assert said["training_curves"] == "Epoch 2 of 3 is best: 62.5% of validation pictures right"
    assert said["confusion_matrix"].startswith("83.3% of 30 pictures right")
    assert "“ankle-boot” for “bag” (3)" in said["confusion_matrix"]
    assert said["per_class"] == "“bag” is the weakest class: precision 80.0%, recall 60.0%"
    assert said["prediction"] == "Answer: ankle-boot (70%), wrong"
    assert said["predictions"] == "Answers to 2 pictures: 0 right, 1 not sure"
    assert "half took under 6.5 ms" in said["latency"]
    assert said["learning_curve"] == (
        "75.0% of the validation pictures right with 10 pictures a class, 92.5% with 40"
    )
    assert said["changed_pictures"] == (
        "Of 20 pictures 90.0% are right as they are; worst is “upside down”: 35.0%"
    )
    assert said["pace"] == "An epoch takes 70 s as “slow” and 0.28 s as “quick”"
    assert said["explained"] == "Answer: ankle-boot (70%), wrong; truth: bag"
    bars = figures["explained"].axes[-1].get_yticklabels()
    assert [text.get_text() for text in bars] == ["bag", "ankle-boot"]


def test_colours_of_the_house_survive_outside_its_style(figures):
    house = {mpl.colors.to_hex(c) for c in ("#0072B2", "#D55E00", "#009E73")}
    dots = [line for line in figures["tuning_trials"].axes[0].lines if line.get_marker() in "os"]
    with mpl.rc_context({"axes.prop_cycle": mpl.cycler(color=["red", "lime"])}):
        used = {mpl.colors.to_hex(line.get_color()) for line in dots}
    assert used - {mpl.colors.to_hex(plots.UNSURE)} <= house


def test_batch_sizes_differ_in_marker_as_well_as_colour():
    left = plots.tuning_trials(TRIALS).axes[0]
    by_label = {line.get_label(): line for line in left.lines}
    assert by_label["64"].get_marker() != by_label["128"].get_marker()
    assert by_label["64"].get_xdata().tolist() == [0.1, 0.001]
    assert by_label["stopped early"].get_xdata().tolist() == [0.001]
    assert left.get_xscale() == "log"


def test_the_best_so_far_never_falls():
    right = plots.tuning_trials(TRIALS).axes[1]
    best = next(line for line in right.lines if line.get_drawstyle() == "steps-post")
    assert best.get_xdata().tolist() == [1, 2, 3]
    assert best.get_ydata().tolist() == [0.5, 0.9, 0.9]


@pytest.mark.parametrize("rows", [slice(0, 1), slice(3, 4), slice(0, 0)])
def test_few_or_failed_trials_still_give_a_figure(rows):
    assert png(plots.tuning_trials(TRIALS[rows]))
    accuracy = TRIALS[rows].rename(columns={"objective": "valid_accuracy"})
    assert png(plots.tuning_trials(accuracy))
    assert png(plots.depth_and_decay(DEEP_TRIALS[rows]))
    assert png(plots.architectures(NETWORKS[rows]))


def test_of_equally_accurate_epochs_the_one_of_lower_loss_is_best():
    equal = HISTORY.assign(valid_accuracy=[0.6, 0.625, 0.625])
    assert title(plots.training_curves(equal)).startswith("Epoch 2 of 3 is best")
    later = equal.assign(valid_loss=[1.1, 1.3, 1.2])
    figure = plots.training_curves(later)
    assert title(figure).startswith("Epoch 3 of 3 is best")
    (mark,) = (line for line in figure.axes[0].lines if line.get_label() == "best epoch")
    assert mark.get_xdata() == [3, 3]


def test_one_epoch_still_gives_a_figure():
    assert title(plots.training_curves(HISTORY[:1])).startswith("Epoch 1 of 1 is best")


def test_the_law_is_drawn_only_where_it_foretells_something():
    law = "power law of the error"
    flat = CURVE.assign(valid_accuracy=[0.9, 0.9, 0.9, 0.9])
    for curve, drawn in ((CURVE, True), (flat, False)):
        figure = plots.learning_curve(curve, classes=3)
        assert (law in [line.get_label() for line in figure.axes[0].lines]) is drawn
        assert png(figure)


def test_planted_duplicates_are_shown(tmp_path):
    dataset = made_up(tmp_path)
    picture = Image.open(dataset.files("train")[0][0])
    picture.save(dataset.folder / "test" / "bag" / "leak.png")
    pairs = explore.duplicates(explore.survey(dataset).pictures)
    figure = plots.duplicates(pairs, dataset)
    assert title(figure).startswith("1 pictures repeat an earlier one, 1 of them across splits")
    assert "nearly repeat" in title(plots.duplicates(pairs.assign(distance=3), dataset))
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]
    assert len(shown) == 2
    assert np.array_equal(*shown)


def test_a_perfect_model_has_no_most_common_mistake():
    assert title(plots.confusion_matrix(np.eye(3, dtype=int), CLASSES)) == (
        "100.0% of 3 pictures right"
    )


def test_an_answer_below_the_threshold_reads_not_sure(dataset):
    picture = dataset.files("test")[3][0]
    assert title(plots.prediction(picture, UNSURE, "bag")) == "Answer: not sure (70%)"
    assert title(plots.prediction(picture, SURE)) == "Answer: ankle-boot (70%)"


def test_pictures_come_in_every_usual_form(dataset):
    path = dataset.files("test")[0][0]
    with Image.open(path) as opened:
        forms = [path, str(path), path.read_bytes(), np.asarray(opened), opened.copy()]
    drawn = {png(plots.prediction(form, SURE)) for form in forms}
    assert len(drawn) == 1


def test_one_latency_still_gives_a_figure():
    assert png(plots.latency([12.0]))


def test_a_notebook_shows_a_figure_that_pyplot_did_not_make():
    pytest.importorskip("matplotlib_inline")
    code = (
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance()\n"
        "from studio import plots\n"
        "figure = plots.confusion_matrix([[1, 0], [0, 1]], ['a', 'b'])\n"
        "print(*shell.display_formatter.format(figure)[0])\n"
    )
    env = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )
    assert "image/png" in done.stdout, done.stderr


def test_importing_the_figures_does_not_import_torch():
    code = "import studio.plots, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_pictures_are_shown_upright_and_on_white():
    turned = Image.new("RGB", (6, 4))
    turned.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # A quarter to the right.
    file = io.BytesIO()
    turned.save(file, "PNG", exif=exif)
    shown = plots._open(file.getvalue())
    assert (shown.size, shown.getpixel((3, 0))) == ((4, 6), (255, 0, 0))
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert plots._open(clear).getpixel((0, 0)) == (255, 255, 255)
    assert plots._open(clear.convert("LA")).getpixel((0, 0)) == 255
