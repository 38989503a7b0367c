"""Makes `.venv` with everything of requirements.txt, once; called by the Makefile.

Runs with whatever Python the reader has, so it uses nothing that is not in the standard library of
Python 3.6, and says in one sentence what is missing.
"""

import hashlib
import os
import shutil
import subprocess
import sys

OLDEST, NEWEST = (3, 10), (3, 12)
NEEDED_GB = 8  # torch with its CUDA libraries takes most of it.
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
REQUIREMENTS = os.path.join(ROOT, "requirements.txt")
STAMP = os.path.join(VENV, "requirements.sha256")
LOG = os.path.join(VENV, "install.log")


def main():
    with open(REQUIREMENTS, "rb") as file:
        wanted = hashlib.sha256(file.read()).hexdigest()
    if installed() == wanted and works():
        return
    check_python()
    check_disk()
    make_venv()
    install()
    with open(STAMP, "w") as file:
        file.write(wanted)
    print("The environment in .venv is ready.")


def installed():
    """The hash of the requirements that .venv was made from, or None."""
    try:
        with open(STAMP) as file:
            return file.read()
    except OSError:
        return None


def works():
    """Whether the Python of .venv is still there and finds what was installed for it."""
    command = [os.path.join(VENV, "bin", "python"), "-c", "import pip"]
    try:
        return subprocess.call(command, stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def check_python():
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        stop(
            "this needs Python {}.{} to {}.{}, and {} is {}.{}; name another one with "
            "`make PYTHON=/path/to/python3.11 ...`.".format(
                *(OLDEST + NEWEST + (sys.executable,) + tuple(sys.version_info[:2]))
            )
        )


def check_disk():
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < NEEDED_GB and not os.path.isdir(VENV):
        stop(
            "the disk of {} has {:.1f} GB free and the environment needs about {} GB; "
            "free some, or clone the project onto a larger disk.".format(ROOT, free, NEEDED_GB)
        )


def make_venv():
    print("Making .venv with {} ...".format(sys.executable), flush=True)
    command = [sys.executable, "-m", "venv", VENV]
    if os.path.isdir(VENV) and not works():
        # As after an upgrade of the system's Python, whose link an old environment keeps.
        command.append("--clear")
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        print(done.stdout.decode(errors="replace"), file=sys.stderr)
        stop(
            "Python's venv module cannot make .venv; on Debian and Ubuntu "
            "`apt install python3-venv` adds what is missing."
        )


def install():
    """Install the requirements: with uv, which is several times faster, else with pip itself."""
    print("Installing requirements.txt into .venv: about 7 GB, a few minutes ...", flush=True)
    python = os.path.join(VENV, "bin", "python")
    pip = [python, "-m", "pip", "install", "--retries", "1", "--timeout", "30"]
    uv = [python, "-m", "uv", "pip", "install", "--python", python, "-r", REQUIREMENTS]
    with open(LOG, "wb") as log:
        if run(pip + ["uv"], log) and run(uv, log):
            return
        if run(pip + ["-r", REQUIREMENTS], log):
            return
    with open(LOG, errors="replace") as file:
        text = file.read()
    if "No space left" in text:
        stop("the disk is full; the environment needs about {} GB.".format(NEEDED_GB))
    unreachable = ("NewConnectionError", "Failed to fetch", "error sending request", "ProxyError")
    if any(word in text for word in unreachable):
        stop("no package index answers; check the network, then type the same command again.")
    stop("the requirements cannot be installed; {} says why.".format(os.path.relpath(LOG, ROOT)))


def run(command, log):
    return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode == 0


def stop(sentence):
    sys.exit("setup: " + sentence)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        stop("interrupted; the same command goes on from here.")
