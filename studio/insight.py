"""What the notebook's cells on the inside of a training use: the report, its tables, its words."""

import html
import json
import os
import tempfile
from pathlib import Path

import pandas as pd
from IPython.display import HTML

from studio.jobs import download, fetch_archive, output_uri

# What smdebug logs about its settings is not for readers of a notebook.
os.environ.setdefault("SMDEBUG_LOG_LEVEL", "error")
STATUSES = {
    "IssuesFound": "issue found",
    "Error": "rule failed",
    "NoIssuesFound": "no issue",
    "NotChecked": "not checked",
}


class Findings(dict):
    """The content of `findings.json`, and the files that came with it.

    Args:
        folder: what `report.py` wrote, or where its output was downloaded to.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        super().__init__(json.loads((self.folder / "findings.json").read_text(encoding="utf-8")))

    @property
    def page(self):
        """Path of the report as one HTML page."""
        return str(self.folder / "report.html")

    def picture(self, name):
        """Path of a figure: curves, losses, norms, activity, time or utilisation."""
        return str(self.folder / f"{name}.png")

    def in_place(self, height=800):
        """The page as a frame in the notebook, for viewers that show frames."""
        text = html.escape(Path(self.page).read_text(encoding="utf-8"))
        style = f"width: 100%; height: {height}px; border: 1px solid #ccc"
        frame = f'<iframe title="Report" style="{style}" srcdoc="{text}"></iframe>'
        return HTML(f"<div>{frame}</div>")

    def summary(self):
        """What the numbers say, as a Markdown list of sentences."""
        left_out = [f"Left out: {sentence}." for sentence in self["left_out"]]
        return "\n".join(f"- {sentence}" for sentence in [*self["summary"], *left_out])

    def table(self, kind=None):
        """The rules with their verdicts, those with an issue first: a DataFrame.

        Args:
            kind: "debugger" or "profiler" for the rules of one of them.
        """
        order = list(STATUSES)
        chosen = [each for each in self["findings"] if kind in (None, each["kind"])]
        rows = {
            each["rule"]: {
                "verdict": STATUSES[each["status"]],
                "first_step": each["first_step"],
                "looked_at": each["checked"],
                "meaning": each["meaning"],
            }
            for each in sorted(chosen, key=lambda each: order.index(each["status"]))
        }
        columns = ["verdict", "first_step", "looked_at", "meaning"]
        table = pd.DataFrame(rows.values(), index=pd.Index(rows, name="rule"), columns=columns)
        return table.astype({"first_step": "Int64"})

    def finding(self, rule):
        """All that one rule found, as in findings.json."""
        return next(each for each in self["findings"] if each["rule"] == rule)

    def evidence(self, rule):
        """The measured values behind the verdict of one rule: a DataFrame."""
        return pd.DataFrame(
            self.finding(rule)["evidence"], columns=["name", "step", "value", "said"]
        )

    def anomalies(self):
        """The answer to "is anything wrong, and how would you fix it?" as a Markdown list."""
        issues = [each for each in self["findings"] if each["status"] == "IssuesFound"]
        checked = sum(
            each["status"] in ("IssuesFound", "NoIssuesFound") for each in self["findings"]
        )
        if not issues:
            return f"None of the {checked} rules that could be checked found anything wrong."
        return "\n".join(map(_anomaly, issues))

    def time(self):
        """Where the time went: a DataFrame of seconds and share by part of the job."""
        seconds = pd.Series(self["profile"]["time"]["parts"], name="seconds")
        return pd.DataFrame({"seconds": seconds, "share": seconds / seconds.sum()})

    def use(self):
        """Mean, median, 95th percentile and maximum of what was used of the machine."""
        return pd.DataFrame(self["profile"]["use"]).T

    def operators(self):
        """The operators of the traced steps, the one that took most first: a DataFrame."""
        return pd.DataFrame(self["profile"]["operators"])


def _anomaly(finding):
    step = finding["first_step"]
    since = "" if step is None else f", from step {step:,}"
    said = f" {finding['evidence'][0]['said']}" if finding["evidence"] else ""
    return f"- **{finding['rule']}**{since}: {finding['meaning']}{said} *Try:* {finding['advice']}"


def wide(table):
    """A table with sentences in it, none of them cut short, for a notebook."""
    with pd.option_context("display.max_colwidth", None):
        # `na_rep` does not reach the missing values of pandas' integers.
        return HTML(table.astype(object).where(table.notna(), "–").to_html())


def fetch_output(cloud, job, folder="build/training-output"):
    """Download and unpack what a training job left in its output folder; return that as a Path."""
    return fetch_archive(cloud, f"{output_uri(job)}/output.tar.gz", folder)


# What follows reads tensors and so loads smdebug, which only the cells about them need.


def open_trial(place):
    """Open the tensors of one training, a folder or an s3:// URI, as a trial of smdebug."""
    from insight import tensors

    return tensors.open_trial(str(place))


def contents(trial):
    """What a trial holds, by collection: how many tensors, and one of their names; a DataFrame."""
    names = {name: trial.tensor_names(collection=name) for name in trial.collections()}
    rows = {
        name: {"tensors": len(found), "for example": sorted(found)[0]}
        for name, found in names.items()
        if found
    }
    return pd.DataFrame(rows.values(), index=pd.Index(rows, name="collection"))


def plot_losses(trial):
    """The loss of every saved step of TRAIN and EVAL, as a figure."""
    from insight import measures, plots
    from insight.tensors import Tensors

    return plots.losses(measures.losses(Tensors(trial)))


def make_report(cloud, job, folder="build/insight", tensors=None):
    """Make the report on a training job here, from the output it left in S3.

    Args:
        job: the description of a training job that has ended.
        tensors: s3:// URI of its tensors, where they are not in its output.
    """
    from insight.report import build

    with tempfile.TemporaryDirectory(prefix="training-") as scratch:
        build(fetch_output(cloud, job, Path(scratch) / "output"), Path(folder), tensors)
    return Findings(folder)


def compare(reports, kind="debugger"):
    """The rules of one kind that fire in any of several trainings, side by side: a DataFrame.

    Args:
        reports: `Findings` by the name of their training.
        kind: "debugger" or "profiler".
    """
    tables = {name: report.table(kind)["verdict"] for name, report in reports.items()}
    table = pd.DataFrame(tables)
    return table[(table == STATUSES["IssuesFound"]).any(axis=1)]


def pace(cloud, jobs, reports, pictures):
    """How fast the steps of trainings went, and how busy they kept the machine: a DataFrame.

    Args:
        jobs: descriptions of training jobs with `profile`, by name.
        reports: `Findings` of the same, by the same names.
        pictures: how many an epoch has.

    Columns: pictures_per_second, epoch_seconds (of the steps alone), waiting (share of the steps'
    time spent waiting for data), busy (share of all processors that the training used between its
    first step and its last) and overhead (share of the computing that depends on no picture, as
    the rule BatchSize measured it; NaN where it could not).
    """
    from insight import profile

    rows = {}
    for name, job in jobs.items():
        with tempfile.TemporaryDirectory(prefix="training-") as scratch:
            found = profile.read(fetch_output(cloud, job, Path(scratch) / "output") / "profile")
        overhead = reports[name].evidence("BatchSize").query("name == 'overhead_percent'")["value"]
        rows[name] = {**_pace(found, pictures), "overhead": overhead.mean() / 100}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("training")


def _pace(found, pictures):
    steps, system = found.measured, found.system
    last = steps.iloc[-1]
    during = system["timestamp"].between(steps["start"].min(), last["start"] + last["seconds"])
    seconds = steps["seconds"].sum()
    speed = steps["pictures"].sum() / seconds
    return {
        "pictures_per_second": speed,
        "epoch_seconds": pictures / speed,
        "waiting": steps["data"].sum() / seconds,
        "busy": system.loc[during, "process_cpu_percent"].mean() / 100,
    }


def what_it_brought(before, after, whole, cached, reached, epochs):
    """What larger batches, and features that are computed once, changed, as Markdown.

    Args:
        before, after: rows of `pace`.
        whole, cached: seconds of all epochs without and with the features, their pass included.
        reached: validation accuracies before and after, by name.
        epochs: how many those are.
    """
    small, large = reached
    faster = after["pictures_per_second"] / before["pictures_per_second"]
    return (
        f"In {small}, **{before['overhead']:.0%}** of the computing depends on no photo, with "
        f"processors {before['busy']:.0%} busy; in {large} **{after['overhead']:.0%}**, with "
        f"{after['busy']:.0%}: **{faster:.1f} times** as many photos a second, and "
        f"{reached[large]:.1%} of the validation photos right instead of {reached[small]:.1%}. "
        f"What counts more: the frozen network is run only once. {epochs} epochs would take "
        f"**{whole:.0f} seconds** without that ({epochs} times a measured one), and take "
        f"**{cached:.0f}** with it, the one pass included."
    )


def download_findings(cloud, uri, folder="build/insight"):
    """Download what a processing job with `report.py` wrote to S3."""
    return Findings(download(cloud, uri, folder))
