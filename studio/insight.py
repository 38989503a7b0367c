"""What the notebook's cells on the inside of a training use: the report, its tables, its words."""

import json
import tempfile
from pathlib import Path

import pandas as pd

from studio.jobs import download, split_uri

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
    said = "".join(f" {evidence['said'].rstrip('.')}." for evidence in finding["evidence"][:1])
    return f"- **{finding['rule']}**{since}: {finding['meaning']}{said} *Try:* {finding['advice']}"


def load_findings(folder):
    """What `report.py` or `make_report` wrote to a folder."""
    return Findings(folder)


def make_report(cloud, job, folder="build/insight", tensors=None):
    """Make the report on a training job here, from the output it left in S3.

    Args:
        job: the description of a training job that has ended.
        tensors: s3:// URI of its tensors, where they are not in its output.
    """
    # Reading tensors loads smdebug, which only the cells about the inside of a training need.
    from insight.report import build
    from vision.archives import extract

    output = job["OutputDataConfig"]["S3OutputPath"].rstrip("/")
    uri = f"{output}/{job['TrainingJobName']}/output/output.tar.gz"
    with tempfile.TemporaryDirectory(prefix="training-") as scratch:
        bucket, key = split_uri(uri)
        archive = Path(scratch) / "output.tar.gz"
        cloud.client("s3").download_file(bucket, key, str(archive))
        extract(archive, Path(scratch) / "output")
        build(Path(scratch) / "output", Path(folder), tensors)
    return Findings(folder)


def download_findings(cloud, uri, folder="build/insight"):
    """Download what a processing job with `report.py` wrote to S3."""
    return Findings(download(cloud, uri, folder))
