"""What the notebook's evaluation and endpoint cells use: channels, the report, comparisons."""

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd

from studio.jobs import download

FOLDER = "/opt/ml/processing"


def channel(name, uri):
    """An input of a processing job: the objects at `uri` appear in `/opt/ml/processing/<name>`."""
    # The SDK can only be imported once a region is set, which `connect` does.
    from sagemaker.core.shapes import ProcessingInput, ProcessingS3Input

    source = ProcessingS3Input(
        s3_uri=uri, local_path=f"{FOLDER}/{name}", s3_data_type="S3Prefix", s3_input_mode="File"
    )
    return ProcessingInput(input_name=name, s3_input=source)


def report(name, uri):
    """An output of a processing job: `/opt/ml/processing/<name>` goes to `uri` at its end."""
    from sagemaker.core.shapes import ProcessingOutput, ProcessingS3Output

    target = ProcessingS3Output(
        s3_uri=uri, local_path=f"{FOLDER}/{name}", s3_upload_mode="EndOfJob"
    )
    return ProcessingOutput(output_name=name, s3_output=target)


def job_name(processor):
    """The name of the job that a processor started last."""
    return processor.latest_job.get_name()


class Evaluation(dict):
    """The content of `evaluation.json`, and the files that came with it.

    Args:
        folder: where the processing job's output was downloaded to.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        super().__init__(json.loads((self.folder / "evaluation.json").read_text()))

    @property
    def page(self):
        """Path of the report as one HTML page."""
        return str(self.folder / "evaluation.html")

    def picture(self, name):
        """Path of one of the pictures of the report."""
        return str(self.folder / f"{name}.png")

    def summary(self):
        """What the numbers say, as a Markdown list of sentences."""
        left_out = [f"Left out: {sentence}." for sentence in self["left_out"]]
        return "\n".join(f"- {sentence}" for sentence in [*self["summary"], *left_out])

    def baselines(self):
        """Accuracy of this model and of each baseline, McNemar's p-value in words: a DataFrame.

        `this_model` is its accuracy on the pictures that the baseline was measured on.
        """
        measured = {"this model": self, **self["baselines"]}
        rows = {
            name.replace("_", " "): {
                "pictures": result["n"],
                "accuracy": result["accuracy"],
                "low": result["accuracy_interval_95"][0],
                "high": result["accuracy_interval_95"][1],
                "this_model": result.get("this_model_accuracy", result["accuracy"]),
                "p_value": _p_value(result.get("mcnemar")),
            }
            for name, result in measured.items()
            if result
        }
        return pd.DataFrame(rows.values(), index=pd.Index(rows, name="answer"))

    def classes(self):
        """Precision, recall, F1 and support of every class, as a DataFrame."""
        return pd.DataFrame(self["classes"]).T.rename_axis("class").astype({"support": int})

    def hardest(self):
        """The two classes that are confused most, in words."""
        matrix = np.array(self["confusion_matrix"]["counts"])
        both = np.triu(matrix + matrix.T, 1)
        if not both.any():
            return "Not one test picture was mistaken."
        first, second = np.unravel_index(both.argmax(), both.shape)
        names = self["confusion_matrix"]["class_names"]
        wrong = matrix.sum() - np.trace(matrix)
        return (
            f"**{names[first]}** and **{names[second]}** are confused most: they account for "
            f"{both[first, second]} of the {wrong:,} mistakes ({both[first, second] / wrong:.0%})."
        )

    def by_count(self):
        """What became of each true count, by the most likely count: a DataFrame.

        Columns: pictures, accuracy, within_one, rmse (items) and mean_answer.
        """
        matrix = np.array(self["confusion_matrix"]["counts"])
        counts = np.array(self["confusion_matrix"]["class_names"], dtype=int)
        errors = counts - counts[:, None]
        total = matrix.sum(1)
        table = {
            "pictures": total,
            "accuracy": np.diag(matrix) / total,
            "within_one": (matrix * (np.abs(errors) <= 1)).sum(1) / total,
            "rmse": np.sqrt((matrix * errors**2).sum(1) / total),
            "mean_answer": matrix @ counts / total,
        }
        return pd.DataFrame(table, index=pd.Index(counts, name="true count"))

    def confidences(self):
        """The predicted label and its confidence by file name."""
        return pd.read_csv(self.folder / "predictions.csv").set_index("file")


def count_baselines(pictures, usual):
    """What answers without a look reach: a DataFrame of accuracy, rmse (items) and within_one.

    Args:
        pictures: how many pictures have each count (index), of those that are asked about.
        usual: the count that is the most common one elsewhere, in training.
    """
    counts = pictures.index.astype(int).to_numpy()
    shares = (pictures / pictures.sum()).to_numpy()

    def expected(answers):
        errors = counts - counts[:, None]
        weights = shares[:, None] * answers
        return (
            weights[errors == 0].sum(),
            np.sqrt((weights * errors**2).sum()),
            weights[np.abs(errors) <= 1].sum(),
        )

    answers = {
        "any count, by lot": np.full(len(counts), 1 / len(counts)),
        f"always {usual}": (counts == int(usual)).astype(float),
    }
    columns = ["accuracy", "rmse", "within_one"]
    rows = [expected(each) for each in answers.values()]
    return pd.DataFrame(rows, index=pd.Index(answers, name="answer"), columns=columns)


def quarters(values, groups):
    """The quarter (1 to 4) that each value is in, among the values of its group."""
    ranks = pd.Series(np.asarray(values)).groupby(np.asarray(groups)).rank(method="first", pct=True)
    return np.ceil(4 * ranks).astype(int).to_numpy()


def errors_by_quarter(answers, measure):
    """How often answers are wrong in each quarter of a measure of their pictures: a DataFrame.

    The quarters are taken within each true class: a fuller bin shows more edges and is harder to
    count, which must not look as if edges made it hard.

    Args:
        answers: columns true, predicted and the measure, one row a picture.

    Columns: pictures, errors (share of wrong answers), low and high (95% interval, Wilson 1927).
    """
    from vision.metrics import share  # Here, because it loads torch.

    wrong = (answers["true"] != answers["predicted"]).to_numpy()
    quarter = quarters(answers[measure], answers["true"])
    rows = []
    for number in range(1, 5):
        here = wrong[quarter == number]
        measured = share(here.sum(), len(here))
        rows.append((len(here), measured["accuracy"], *measured["accuracy_interval_95"]))
    columns = ["pictures", "errors", "low", "high"]
    return pd.DataFrame(rows, index=pd.RangeIndex(1, 5, name="quarter"), columns=columns)


def chance_of(answers, measure, draws=5000, seed=0):
    """How likely chance alone makes the quarters differ so much: (difference, p-value).

    The difference is the share of errors in the lowest quarter less that in the highest; the
    p-value that of a two-sided permutation test, which shuffles the errors within each true class.
    """
    wrong = (answers["true"] != answers["predicted"]).to_numpy(float)
    quarter = quarters(answers[measure], answers["true"])
    weights = (quarter == 1) / (quarter == 1).sum() - (quarter == 4) / (quarter == 4).sum()
    members = [np.flatnonzero(answers["true"] == name) for name in answers["true"].unique()]
    rng, shuffled = np.random.default_rng(seed), np.empty((draws, len(wrong)))
    for at in members:
        shuffled[:, at] = rng.permuted(np.tile(wrong[at], (draws, 1)), axis=1)
    found = weights @ wrong
    as_far = (np.abs(shuffled @ weights) >= abs(found) - 1e-12).sum()
    return float(found), float((as_far + 1) / (draws + 1))


def _p_value(test):
    if not test:
        return ""
    return "< 0.001" if test["p_value"] < 0.001 else f"{test['p_value']:.3f}"


def load_report(cloud, uri, folder="build/evaluation"):
    """Download what the evaluation wrote to S3."""
    return Evaluation(download(cloud, uri, folder))


def largest_gap(evaluation, answers):
    """The largest difference in confidence between the endpoint and the evaluation.

    Args:
        answers: (path, answer, true class) of pictures that the evaluation has seen, too.
    """
    known = evaluation.confidences()["confidence"]
    gaps = [abs(known[f"{name}/{path.name}"] - a["confidence"]) for path, a, name in answers]
    # Unlike the built-in, this maximum is NaN where one of them is.
    return float(np.max(gaps))


def benchmark(cards, milliseconds):
    """How candidates do on the validation pictures, and how quickly they answer: a DataFrame.

    Args:
        cards: the content of each one's model.json, by its name.
        milliseconds: the durations of requests to each, as `time_requests` returns them.

    Columns: pretrained, pictures, accuracy, low and high (its 95% interval, Wilson 1927),
    milliseconds (median) and trained_in (seconds of the whole job).
    """
    from vision.metrics import share  # Here, because it loads torch.

    rows = {}
    for name, card in cards.items():
        pictures, accuracy = card["valid_pictures"], card["metrics"]["valid_accuracy"]
        measured = share(round(accuracy * pictures), pictures)
        low, high = measured["accuracy_interval_95"]
        rows[name] = {
            "pretrained": card["hyperparameters"]["pretrained"],
            "pictures": pictures,
            "accuracy": measured["accuracy"],
            "low": low,
            "high": high,
            "milliseconds": float(np.median(milliseconds[name])),
            "trained_in": card["seconds"],
        }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")
    return table.sort_values("accuracy", ascending=False)


def choose(table):
    """The candidate to serve: the fastest of those as accurate as the best.

    As accurate means to within one standard error of the best one's accuracy: the rule of Breiman,
    Friedman, Olshen and Stone, *Classification and Regression Trees* (1984), section 3.4.3, with
    speed in the place of simplicity.

    Args:
        table: what `benchmark` returned.
    """
    best = table["accuracy"].max()
    error = np.sqrt(best * (1 - best) / table["pictures"])
    return table[table["accuracy"] >= best - error]["milliseconds"].idxmin()


def time_requests(ask, pictures, count):
    """Durations in milliseconds of `count` requests, one after the other.

    Args:
        ask: function that sends the bytes of one picture.
        pictures: the bytes to send, in turn.
    """
    durations = []
    for i in range(count):
        start = time.perf_counter()
        ask(pictures[i % len(pictures)])
        durations.append((time.perf_counter() - start) * 1000)
    return durations
