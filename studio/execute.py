"""Executes a notebook from the command line, and shows how far it is.

    python -m studio.execute train_and_deploy.ipynb --output build/train_and_deploy.ipynb --html
    python -m studio.execute train_and_deploy.ipynb --output build/fast.ipynb -p TRIALS=2

The notebook runs in its own folder, with this Python as its kernel. Where a cell fails, or Ctrl-C
ends it, what was executed so far is kept beside the output as *.failed.ipynb, and the output is not
touched.
"""

import argparse
import asyncio
import json
import math
import os
import re
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from traitlets.config import Config

KERNEL = "python3"
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)


def get_args_parser():
    parser = argparse.ArgumentParser(
        prog="python -m studio.execute",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="the executed notebook")
    parser.add_argument("--html", action="store_true", help="also render it beside the output")
    parser.add_argument(
        "-p",
        dest="parameters",
        action="append",
        default=[],
        type=assignment,
        metavar="NAME=VALUE",
        help="replace a value of the cell tagged `parameters`; VALUE is JSON or a plain string",
    )
    return parser


def assignment(text):
    """NAME=VALUE as a pair; the value is JSON where it can be read as such."""
    match = ASSIGNMENT.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return match[1], json.loads(match[2])
    except ValueError:
        return match[1], match[2]


def main(args):
    notebook = nbformat.read(args.notebook, as_version=4)
    set_parameters(notebook, dict(args.parameters))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    failed = args.output.with_suffix(".failed.ipynb")
    failed.unlink(missing_ok=True)
    # Its check of the debugger's files is a warning on every start, of no use to anybody here.
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    started = time.monotonic()
    progress = Progress(notebook)
    try:
        execute(notebook, args.notebook.resolve().parent, progress)
    except (CellExecutionError, RuntimeError, KeyboardInterrupt) as error:
        progress.close()
        nbformat.write(notebook, failed)
        print(
            f"\nexecute: {reason(error)}\nexecute: {failed} shows how far it came.", file=sys.stderr
        )
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    progress.close()
    nbformat.write(notebook, args.output)
    print(f"\n{summary(notebook)}")
    print(f"\nexecuted in {time.monotonic() - started:.0f} s: {args.output}")
    if args.html:
        print(f"to read in a browser:  {render(notebook, args.output)}")
    return 0


def execute(notebook, folder, progress):
    """Run all cells of `notebook` in `folder`; their outputs are written into it.

    Raises:
        CellExecutionError: a cell failed.
        RuntimeError: the kernel did not start, or died (DeadKernelError).
        KeyboardInterrupt: Ctrl-C.
    """
    with tempfile.TemporaryDirectory(prefix="kernel-") as sockets, ThreadPoolExecutor(1) as pool:
        # By default the kernel would listen on TCP ports, readable for every user of the machine.
        transport = {"transport": "ipc", "ip": f"{sockets}/ipc"}
        client = NotebookClient(
            notebook,
            timeout=None,
            kernel_name=KERNEL,
            config=Config(KernelManager=transport),
            resources={"metadata": {"path": str(folder)}},
            on_cell_start=progress.start,
            on_cell_executed=progress.end,
            on_cell_error=progress.end,
        )
        tasks = []

        async def run():
            tasks.append(asyncio.current_task())
            await client.async_execute()

        # Not in the main thread, where nbclient would take Ctrl-C and end in a traceback.
        running = pool.submit(asyncio.run, run())
        try:
            running.result()
        except KeyboardInterrupt:
            client.shutdown_kernel = "immediate"
            for task in tasks:
                task.get_loop().call_soon_threadsafe(task.cancel)
            raise


def set_parameters(notebook, parameters):
    """Insert a cell that assigns `parameters` after the one tagged `parameters`."""
    if not parameters:
        return
    index = next(
        (i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", [])),
        None,
    )
    if index is None:
        sys.exit("execute: the notebook has no cell tagged `parameters`.")
    known = notebook.cells[index].source
    for name in parameters:
        if not re.search(rf"^{name}\s*=", known, re.MULTILINE):
            sys.exit(f"execute: the notebook has no parameter {name}.")
    source = "\n".join(f"{name} = {literal(value)}" for name, value in parameters.items())
    notebook.cells.insert(index + 1, nbformat.v4.new_code_cell(source))


def literal(value):
    """The value of a parameter as Python: JSON's Infinity and NaN have no literal there."""
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)


class Progress:
    """Says which cell runs, under which heading, and for how long."""

    def __init__(self, notebook):
        self.headings = {}
        heading = ""
        for index, cell in enumerate(notebook.cells):
            found = re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE)
            if cell.cell_type == "markdown" and found:
                heading = found[-1]
            if cell.cell_type == "code" and cell.source.strip():
                self.headings[index] = heading
        self.numbers = {index: i + 1 for i, index in enumerate(self.headings)}
        self.label, self.since = None, None
        self.live = sys.stdout.isatty()
        self.done = threading.Event()
        self.clock = threading.Thread(target=self._tick, daemon=True)
        if self.live:
            self.clock.start()

    def start(self, cell, cell_index):
        if cell_index not in self.headings:
            return
        first = cell.source.strip().splitlines()[0]
        number = f"[{self.numbers[cell_index]}/{len(self.numbers)}]"
        self.label = f"{number:>8} {self.headings[cell_index][:34]:34} {first[:40]:40}"
        self.since = time.monotonic()
        print(self.label, end="", flush=True)

    def end(self, cell, cell_index, execute_reply=None):
        if self.since is None:
            return
        label, seconds, self.since = self.label, time.monotonic() - self.since, None
        # On a terminal the clock has already written behind the label.
        again = f"\r{label}" if self.live else ""
        print(f"{again} {seconds:6.1f} s", flush=True)

    def close(self):
        self.done.set()

    def _tick(self):
        while not self.done.wait(1):
            self._write()

    def _write(self):
        since = self.since
        if since is not None:
            print(f"\r{self.label} {time.monotonic() - since:6.1f} s", end="", flush=True)


def reason(error):
    """Why the execution ended, in a line."""
    if isinstance(error, CellExecutionError):
        return f"{error.ename}: {error.evalue}"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted."
    if isinstance(error, DeadKernelError):
        return "the kernel died; was the memory of this machine used up?"
    return f"the kernel did not start: {error}"


def summary(notebook):
    """The text of the cell tagged `summary`: what the run came to."""
    for cell in notebook.cells:
        if "summary" in cell.metadata.get("tags", []):
            texts = [output.get("data", {}).get("text/plain") for output in cell.outputs]
            return "\n".join(text for text in texts if text)
    return ""


def render(notebook, output):
    """Write the notebook as HTML beside `output`; return the path."""
    from nbconvert import HTMLExporter

    body, _ = HTMLExporter().from_notebook_node(
        notebook, resources={"metadata": {"name": output.stem}}
    )
    path = output.with_suffix(".html")
    path.write_text(body, encoding="utf-8")
    return path


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ends as Ctrl-C does.
    sys.exit(main(get_args_parser().parse_args()))
