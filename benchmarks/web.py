"""How long the web app takes to answer: the README's table of it, measured on this machine.

    python benchmarks/web.py                    # both parts: about five minutes
    python benchmarks/web.py latency            # one of them
    python benchmarks/web.py --trial --repeats 3 --seconds 5     # small, and writes nothing
    python benchmarks/web.py --table            # write the README's table, measure nothing

`latency`: from a file chosen on the page, in headless Chromium, to the answer on the screen. The
file is a JPEG of 12 megapixels that lies on its side and says so in its EXIF data: a mosaic of
real photos with the noise of a sensor, because a smooth picture of that size decodes faster than
any camera's. `users`: so many clients at once, each of which sends what the page sends, waits for
the answer, and asks again after the think time.

Behind the page are the function in the gateway's workers and a real endpoint of the local cloud
with a resnet34 at 112 pixels; its weights are random, which changes the answers and not the time.
Needs DATA_DIR with listings. What is measured goes to benchmarks/web.json.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.results import conditions, write_table  # noqa: E402

RESULTS = PROJECT / "benchmarks" / "web.json"
BEGIN = "<!-- written by benchmarks/web.py -->"
MODEL, IMAGE_SIZE = "resnet34", 112
TARGET = 1000  # Milliseconds that 95 of 100 photos may take.
PHOTO = 4000, 3000  # Pixels, as the sensor has them.
TILES = 4, 3  # Photos of the mosaic.
NOISE = 6  # Standard deviation, of 255: a phone's, in a room.
LYING = 6  # The EXIF orientation of a phone held upright: turn it to the right by 90 degrees.
WARM_UP = 5
SENT = 2 * IMAGE_SIZE, 0.85  # As web/page/picture.js makes a picture: side and quality.
# Resolves to the milliseconds from the chosen file to the first frame with its answer.
STOPWATCH = """() => {
  performance.clearMeasures();
  const found = document.getElementById("found");
  window.stopwatch = new Promise((resolve, reject) => {
    let start;
    const seen = new MutationObserver(() => {
      if (found.hidden) return;
      seen.disconnect();
      requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - start)));
    });
    document.getElementById("file").addEventListener("change", () => {
      start = performance.now();
      found.hidden = true;
      setTimeout(() => seen.observe(found, { attributeFilter: ["hidden"] }));
    }, { capture: true, once: true });
    setTimeout(() => reject(new Error("no answer within a minute")), 60000);
  });
}"""
LAPS = """() => Object.fromEntries(
  performance.getEntriesByType("measure").map(({ name, duration }) => [name, duration]))"""


# --- What is measured ---------------------------------------------------------------------------


@contextlib.contextmanager
def served_model(dataset):
    """The page of a resnet34 on a local cloud of its own: (cloud, `Served`)."""
    from studio import web
    from studio.cloud import connect

    before = os.environ.get("LOCAL_CLOUD_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LOCAL_CLOUD_HOME"] = str(Path(folder) / "home")
        try:
            model = untrained_model(dataset, Path(folder))
            cloud = connect("local")
            uri = web.take_model(cloud, str(model))
            card = web.read_card(cloud, uri)
            with web.serve(cloud, web.deploy(cloud, uri), card, []) as page:
                yield cloud, page
        finally:
            command = [sys.executable, "-m", "local_cloud", "reset"]
            subprocess.run(command, cwd=PROJECT, stdout=subprocess.DEVNULL)
            if before is None:
                del os.environ["LOCAL_CLOUD_HOME"]
            else:
                os.environ["LOCAL_CLOUD_HOME"] = before


def untrained_model(dataset, folder):
    """The folder of a model that took one step on a few pictures."""
    model = folder / "model"
    words = ["--train", dataset.folder / "train", "--valid", dataset.folder / "valid"]
    words += ["--model", MODEL, "--image-size", IMAGE_SIZE, "--pretrained", "false"]
    words += ["--recipe", "photos-all", "--model-dir", model, "--output-data-dir", folder / "out"]
    command = [sys.executable, PROJECT / "train_model.py", "--dry-run", *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"train_model.py failed:\n{done.stdout}{done.stderr}")
    return model


def phone_photo(dataset, path):
    """Write the photo of 12 megapixels to `path`; return its size in bytes."""
    files = [file for file, _ in dataset.files("test")][:: len(dataset.files("test")) // 12]
    across, down = TILES
    side = PHOTO[0] // across, PHOTO[1] // down
    photo = Image.new("RGB", PHOTO)
    for number, file in enumerate(files[: across * down]):
        row, column = divmod(number, across)
        with Image.open(file) as tile:
            tile = tile.convert("RGB").resize(side, Image.Resampling.LANCZOS)
            photo.paste(tile, (column * side[0], row * side[1]))
    noise = np.random.default_rng(0).normal(0, NOISE, (*PHOTO[::-1], 3))
    pixels = (np.asarray(photo) + noise).clip(0, 255).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = LYING
    Image.fromarray(pixels).save(path, "JPEG", quality=92, exif=exif)
    return path.stat().st_size


def latency(cloud, page, dataset, args):
    """Milliseconds from the chosen file to the shown answer, and of each part, in order."""
    from studio.web import chromium

    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        photo = Path(folder) / "photo.jpg"
        size = phone_photo(dataset, photo)
        view = browser.new_page(viewport={"width": 1100, "height": 800})
        view.goto(page.page_url)
        view.wait_for_selector("#idle:not([hidden])")
        rounds = [ask(view, photo) for _ in range(WARM_UP + args.repeats)][WARM_UP:]
    functions, endpoints = durations(cloud, [each["request"] for each in rounds])
    parts = {"whole": [], "prepare": [], "gateway": [], "function": [], "endpoint": [], "show": []}
    for each, function, endpoint in zip(rounds, functions, endpoints):
        parts["whole"].append(each["whole"])
        parts["prepare"].append(each["prepare"])
        parts["gateway"].append(each["ask"] - function)
        parts["function"].append(function - endpoint)
        parts["endpoint"].append(endpoint)
        parts["show"].append(each["whole"] - each["prepare"] - each["ask"])
    return {"photo_bytes": size, "sent_bytes": rounds[0]["sent"], "milliseconds": parts}


def ask(view, photo):
    """One photo on the page: milliseconds, the number of its request and the bytes sent."""
    view.evaluate(STOPWATCH)
    with view.expect_response(lambda r: r.url.endswith("/classify") and r.ok) as answered:
        view.set_input_files("#file", photo)
    whole = view.evaluate("() => window.stopwatch")
    response = answered.value
    return {
        "whole": whole,
        "request": response.headers["apigw-requestid"],
        "sent": int(response.request.all_headers()["content-length"]),
        **view.evaluate(LAPS),
    }


def durations(cloud, requests):
    """Milliseconds of the function and of the endpoint, of each request, from the log."""
    group = {"logGroupName": "/aws/lambda/photo-classifier"}
    deadline = time.monotonic() + 10
    while True:
        pages = cloud.client("logs").get_paginator("filter_log_events").paginate(**group)
        lines = [event["message"] for page in pages for event in page["events"]]
        functions, endpoints = {}, {}
        for line in lines:
            found = re.match(r"REPORT RequestId: (\S+)\tDuration: ([0-9.]+) ms", line)
            if found:
                functions[found[1]] = float(found[2])
            elif '"endpoint_ms"' in line:
                told = json.loads(line)
                endpoints[told["correlation_id"]] = told["endpoint_ms"]
        if set(requests) <= functions.keys() & endpoints.keys():
            return [functions[r] for r in requests], [endpoints[r] for r in requests]
        if time.monotonic() > deadline:
            raise SystemExit("the function's log lacks some of the requests")
        time.sleep(0.5)


def users(cloud, page, dataset, args):
    """What so many users at once saw: milliseconds of each answer, and each error.

    They live in a process of their own, so that they do not take turns with the gateway's threads.
    """
    bodies = [small_jpeg(file) for file, _ in dataset.files("test")[:50]]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, (page.api_url, page.page_url, bodies, vars(args)))


def small_jpeg(file):
    """A photo as the page sends it."""
    from PIL import ImageOps

    side, quality = SENT
    buffer = io.BytesIO()
    with Image.open(file) as photo:
        ImageOps.fit(photo.convert("RGB"), (side, side)).save(
            buffer, "JPEG", quality=round(100 * quality)
        )
    return buffer.getvalue()


def work(api_url, origin, bodies, args):
    """Let the users ask for `seconds`, after so many that nobody counts that workers start."""
    import urllib3

    pool = urllib3.PoolManager(maxsize=args["users"])
    milliseconds, errors, lock = [], [], threading.Lock()
    counted_from = time.monotonic() + args["warm_up"]
    until = counted_from + args["seconds"]

    def user(number):
        # Not all at the same moment.
        time.sleep(args["think"] * number / args["users"])
        turn = number
        while (start := time.monotonic()) < until:
            error = ask_api(pool, api_url, origin, bodies[turn % len(bodies)])
            took = 1000 * (time.monotonic() - start)
            if start >= counted_from:
                with lock:
                    milliseconds.append(took)
                    errors.extend([error] if error else [])
            turn += args["users"]
            time.sleep(args["think"])

    with ThreadPoolExecutor(args["users"]) as threads:
        list(threads.map(user, range(args["users"])))
    return {
        "users": args["users"],
        "seconds": args["seconds"],
        "think_seconds": args["think"],
        "milliseconds": milliseconds,
        "errors": errors,
    }


def ask_api(pool, api_url, origin, body):
    """What is wrong with an answer of the API, None where nothing is."""
    import urllib3

    headers = {"Content-Type": "image/jpeg", "Origin": origin}
    try:
        answer = pool.request(
            "POST", f"{api_url}/classify", body=body, headers=headers, timeout=20, retries=False
        )
        if answer.status != 200 or not answer.json()["scores"]:
            return f"{answer.status} {answer.data[:200]!r}"
    except (urllib3.exceptions.HTTPError, ValueError, KeyError) as error:
        return repr(error)
    return None


# --- What is told -------------------------------------------------------------------------------

PARTS = {"latency": latency, "users": users}
WORDS = {
    "prepare": "decoding and shrinking, in the page",
    "gateway": "network and gateway",
    "function": "the function, without the endpoint",
    "endpoint": f"the endpoint, {MODEL} at {IMAGE_SIZE} pixels",
    "show": "the rest of the page, until the frame",
}


def table(results):
    """The README's table, as Markdown, of what was measured so far."""
    rows = ["| what | median | 95 of 100 within | target |", "| --- | --- | --- | --- |"]
    if "latency" in results:
        figures = results["latency"]["figures"]
        times = figures["milliseconds"]
        size = f"{figures['photo_bytes'] / 1e6:.1f} MB"
        rows.append(
            f"| from a photo of 12 megapixels ({size}) chosen on the page to its answer, "
            f"{len(times['whole'])} times | {percentiles(times['whole'])} | {TARGET} ms |"
        )
        rows += [f"| … {words} | {percentiles(times[part])} | |" for part, words in WORDS.items()]
    if "users" in results:
        figures = results["users"]["figures"]
        count, errors = len(figures["milliseconds"]), len(figures["errors"])
        rows.append(
            f"| {figures['users']} users at once for {figures['seconds']:.0f} s, who think for "
            f"{figures['think_seconds']:g} s: {count:,} answers, "
            f"{count / figures['seconds']:.1f} a second, {errors} errors | "
            f"{percentiles(figures['milliseconds'])} | no error |"
        )
    return "\n".join(rows)


def percentiles(values):
    """Median and 95th percentile (the smallest value that 95% do not exceed) as two cells."""
    ordered = sorted(values)
    last = ordered[-(-95 * len(ordered) // 100) - 1]
    return f"{statistics.median(ordered):.0f} ms | {last:.0f} ms"


def main():
    args = get_args_parser().parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not args.table:
        from studio.datasets import prepare

        dataset = prepare("listings", PROJECT / "build" / "data")
        with served_model(dataset) as (cloud, page):
            for part in args.parts or PARTS:
                print(f"{part} ...", flush=True)
                figures = PARTS[part](cloud, page, dataset, args)
                results[part] = {"figures": figures, **conditions()}
        print(table({part: results[part] for part in args.parts or PARTS}))
    if args.trial:
        return
    if not args.table:
        RESULTS.write_text(json.dumps(rounded(results), indent=1) + "\n")
    write_table(BEGIN, table(results))


def rounded(value):
    """Milliseconds to a tenth: more digits would only be noise."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 1) if isinstance(value, float) else value


def get_args_parser():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; none for all")
    parser.add_argument("--repeats", type=int, default=30, help="photos (%(default)s)")
    parser.add_argument("--users", type=int, default=20, help="at once (%(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="they ask (%(default)s)")
    parser.add_argument("--think", type=float, default=1, help="seconds each (%(default)s)")
    parser.add_argument("--warm-up", type=float, default=10, help="seconds before (%(default)s)")
    parser.add_argument("--trial", action="store_true", help="print the table and write nothing")
    parser.add_argument("--table", action="store_true", help="only write the table in README.md")
    return parser


if __name__ == "__main__":
    main()
