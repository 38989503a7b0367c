"""Report what happened inside a training job: a SageMaker processing job.

    python report.py --training build/output --output build/report
    python report.py --training build/output --tensors s3://bucket/debug --output build/report
    python report.py --training build/output --output build/report --dry-run    # one rule

--training is what the job left in its output folder, or a folder with its output.tar.gz; train
with --debug true and --profile true, or most of the report is left out. <output> gets

    report.html        the report as one page that needs no script and no other file
    findings.json      its verdicts and numbers; docs/findings.schema.json tells what each means
    curves.png, losses.png, norms.png, activity.png, time.png, utilisation.png    its figures

An issue that a rule finds is a result of the report, not a fault of this job.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from insight.findings import Status
from insight.report import Report, build
from vision.archives import extract
from vision.cli import ArgumentParser, add_dry_run, run
from vision.errors import ExpectedError

ARCHIVE = "output.tar.gz"


def get_args_parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--training",
        default="/opt/ml/processing/training",
        help=f"folder with a training job's {ARCHIVE}, or with its unpacked content",
    )
    parser.add_argument(
        "--tensors",
        help="folder or s3:// URI of the tensors; without it /opt/ml/processing/tensors where "
        "there is one, and else those in --training",
    )
    parser.add_argument(
        "--output", default="/opt/ml/processing/report", help="where the report goes"
    )
    add_dry_run(parser, "check only one of the debugger's rules and write everything")
    return parser


def main(args: argparse.Namespace) -> None:
    output = Path(args.output)
    with tempfile.TemporaryDirectory(prefix="training-") as scratch:
        training = unpacked(Path(args.training), Path(scratch))
        only = ["LossNotDecreasing"] if args.dry_run else None
        report = build(training, output, args.tensors or mounted_tensors(), only)
    print_result(report)


def unpacked(folder: Path, scratch: Path) -> Path:
    """Return the folder that holds what the job wrote: `folder`, or `scratch` with its archive."""
    if not folder.is_dir():
        raise ExpectedError(f"{folder} is not there: --training names a folder")
    archive = folder / ARCHIVE
    if not archive.is_file():
        return folder
    extract(archive, scratch)
    return scratch


def mounted_tensors() -> str | None:
    """Return the folder of a processing job's input for the tensors, where it has one."""
    folder = Path("/opt/ml/processing/tensors")
    return str(folder) if folder.is_dir() else None


def print_result(report: Report) -> None:
    counts = dict.fromkeys(Status, 0)
    for finding in report.findings:
        counts[finding.status] += 1
        if finding.status == Status.ISSUES:
            print(f"{finding.rule}: {finding.meaning}", flush=True)
    print(" ".join(f"{status.value}={count}" for status, count in counts.items()), flush=True)
    for sentence in report.facts["left_out"]:
        print(f"left out: {sentence}", flush=True)


if __name__ == "__main__":
    sys.exit(run(main, get_args_parser().parse()))
