"""Writes the site: every notebook and document as a page, for any browser, without a network.

    python -m tools.site                              # to build/site
    python -m tools.site --output /tmp/site           # elsewhere
    python -m tools.site notebooks/dog_breeds.ipynb   # of these notebooks only

The pages are read from files, open build/site/index.html, or served by any server of files.
"""

import argparse
import sys
import time
from pathlib import Path

from tools import ROOT, notebooks_of
from tools.site.build import SiteError, build


def get_args_parser():
    parser = argparse.ArgumentParser(
        prog="python -m tools.site",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "notebooks",
        nargs="*",
        type=Path,
        metavar="NOTEBOOK",
        help="executed notebooks; those of the project unless given",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("build/site"),
        help="folder of the site; one of an earlier run is replaced (%(default)s)",
    )
    return parser


def main(args):
    started = time.monotonic()
    try:
        site = build(args.notebooks or notebooks_of(ROOT), args.output, ROOT)
    except SiteError as error:
        print(f"site: {error}", file=sys.stderr)
        return 1
    for link in site.dead_links:
        print(f"site: {link}", file=sys.stderr)
    seconds = time.monotonic() - started
    print(f"{site} in {seconds:.1f} s. Open {args.output / 'index.html'} in a browser.")
    return 0


if __name__ == "__main__":
    sys.exit(main(get_args_parser().parse_args()))
