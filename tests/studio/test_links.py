"""Lists of links and keys: what is read of them, and fetching from servers that misbehave."""

import csv
import io
import json
import os
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from moto.server import ThreadedMotoServer
from PIL import Image
from samples import encode, huge_png, noise

from studio import links
from studio.datasets import SPLITS, DataError, prepare


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.delenv("DATA_DIR", raising=False)
    monkeypatch.setattr(links, "BACKOFF", 0.01)
    monkeypatch.setattr(links, "LONGEST_WAIT", 0.05)


def picture(number):
    return encode(noise(40, 40, seed=number))


class Site(BaseHTTPRequestHandler):
    """/<kind>/<number>: a picture, or what the kind does instead."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.split("?")[0]
        with self.server.lock:
            self.server.asked[path] += 1
            times = self.server.asked[path]
        _, kind, number = path.split("/")
        getattr(self, f"_{kind}")(picture(int(number)), times)

    def _answer(self, body, status=200, length=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", len(body) if length is None else length)
        self.end_headers()
        self.wfile.write(body)

    def _ok(self, body, times):
        self._answer(body)

    def _flaky(self, body, times):
        status = {1: 503, 2: 429}.get(times, 200)
        self._answer(body, status, Retry_After="3600")

    def _down(self, body, times):
        self._answer(b"", 500)

    def _gone(self, body, times):
        self._answer(body, 404)

    def _cutonce(self, body, times):
        self._answer(body if times > 1 else body[:50], length=len(body))
        self.close_connection = True

    def _cut(self, body, times):
        self._answer(body[:50], length=len(body))
        self.close_connection = True

    def _cutchunks(self, body, times):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"40\r\n" + body[:30])
        self.close_connection = True

    def _short(self, body, times):
        """Half a picture that claims to be all."""
        self._answer(body[: len(body) // 2])

    def _portal(self, body, times):
        self._answer(b"<html>Sign in to the network</html>", Content_Type="image/png")

    def _bomb(self, body, times):
        self._answer(huge_png())

    def _endless(self, body, times):
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(bytes(1 << 16))
        except OSError:
            self.close_connection = True

    def _silent(self, body, times):
        time.sleep(0.6)

    def _drip(self, body, times):
        self.send_response(200)
        self.end_headers()
        try:
            for byte in body:
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
        except OSError:
            self.close_connection = True

    def _moved(self, body, times):
        self._answer(b"", 302, Location=self.path.replace("moved", "ok"))

    def _circle(self, body, times):
        self._answer(b"", 302, Location=self.path)

    def _astray(self, body, times):
        self._answer(b"", 302, Location="file:///etc/hostname")

    def log_message(self, *args):
        pass


@pytest.fixture
def site():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.asked, server.lock = Counter(), threading.Lock()
    server.at = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def write_csv(path, rows, header=("url", "label")):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def good(site, count=12):
    return [(f"{site.at}/ok/{i}", ("cat", "dog")[i % 2]) for i in range(count)]


def report(dataset):
    with dataset.report.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def content(dataset):
    return {path.read_bytes(): name for split in SPLITS for path, name in dataset.files(split)}


def test_links_become_class_folders(site, tmp_path, capsys):
    path = write_csv(tmp_path / "pets.csv", good(site))
    dataset = prepare(path, root=tmp_path / "root", shares=(0.5, 0.5))
    assert content(dataset) == {picture(i): ("cat", "dog")[i % 2] for i in range(12)}
    assert dataset.left_out == 0
    assert dataset.report.read_text() == "line,link,label,problem\n"
    assert "fetching 12 pictures … " in (out := capsys.readouterr().out)
    assert "50 %" in out
    assert prepare(path, root=tmp_path / "root", shares=(0.5, 0.5)) == dataset
    assert set(site.asked.values()) == {1}


def test_photos_larger_than_training_takes_are_fetched_to_be_scaled_down(
    site, tmp_path, monkeypatch
):
    large = io.BytesIO()
    Image.new("RGB", (8000, 6000), "red").save(large, "JPEG")
    answer = large.getvalue()
    monkeypatch.setattr(Site, "_large", lambda self, *_: self._answer(answer), raising=False)
    path = write_csv(tmp_path / "pets.csv", [*good(site), (f"{site.at}/large/1", "cat")])
    assert prepare(path, root=tmp_path / "small", short_side=512).left_out == 0
    (row,) = report(prepare(path, root=tmp_path / "small"))
    assert "more than 25 million pixels" in row["problem"]


SILENT = "the server is silent, 4 times"
CUT = "the answer is cut off, 4 times"
FAULTS = {
    "down": "the server answers 500, 4 times",
    "gone": "the server answers 404",
    "cut": CUT,
    "cutchunks": CUT,
    "short": "the picture is truncated or damaged",
    "portal": "this is not a readable JPEG, PNG or WebP picture",
    "bomb": "the picture claims more than 25 million pixels",
    "endless": "more than 25 MB",
    "silent": SILENT,
    "drip": "took longer than 1 s",
    "circle": "too many redirects, 4 times",
    "astray": "the link leads nowhere, 4 times",
}


def test_a_bad_answer_is_reported_and_left_out(site, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(links, "READ_SECONDS", 0.4)
    monkeypatch.setattr(links, "SECONDS_A_PICTURE", 1)
    fine = [*good(site, 20), (f"{site.at}/flaky/20", "cat")]
    fine += [(f"{site.at}/cutonce/21", "dog"), (f"{site.at}/moved/22?size=1", "dog")]
    bad = [(f"{site.at}/{kind}/30", "dog") for kind in FAULTS]
    bad.append(("http://127.0.0.1:9/refused/1", "cat"))
    monkeypatch.setattr(links, "HOPELESS", 99)
    path = write_csv(tmp_path / "pets.csv", [*fine, *bad])
    dataset = prepare(path, root=tmp_path / "root")
    assert set(content(dataset)) == {picture(i) for i in range(23)}
    rows = report(dataset)
    assert [int(row["line"]) for row in rows] == list(range(25, 25 + len(bad)))
    assert [(row["link"], row["label"]) for row in rows] == bad
    wanted = [*FAULTS.values(), "the server is not reached, 4 times"]
    for row, words in zip(rows, wanted, strict=True):
        assert row["problem"].startswith(words), row
    assert dataset.left_out == len(bad)
    assert f"left out: {len(bad)}" in dataset.banner()
    assert f"pictures LEFT OUT: {len(bad)}" in capsys.readouterr().out
    assert (site.asked["/flaky/20"], site.asked["/gone/30"]) == (3, 1)
    assert not list((tmp_path / "root" / "downloads").rglob("*.partial"))


def test_a_second_call_fetches_only_what_is_missing(site, tmp_path, monkeypatch):
    rows = [*good(site), *((f"{site.at}/gone/{i}", "dog") for i in range(20, 40))]
    path = write_csv(tmp_path / "pets.csv", rows)
    monkeypatch.setattr(links, "WORKERS", 1)
    with pytest.raises(DataError, match="What was fetched is kept"):
        prepare(path, root=tmp_path / "root")
    for name, age in ((".killed.partial", 24 * 3600), (".another-run.partial", 60)):
        partial = tmp_path / "root" / "downloads" / "pets" / name
        partial.write_bytes(b"half")
        os.utime(partial, (time.time() - age,) * 2)
    write_csv(path, good(site, 14))
    dataset = prepare(path, root=tmp_path / "root", shares=(0.5, 0.5))
    assert len(content(dataset)) == 14
    assert {path: n for path, n in site.asked.items() if n > 1} == {}
    assert list((tmp_path / "root" / "downloads").rglob("*.partial")) == [partial]


def test_two_runs_with_one_list_do_no_harm(site, tmp_path, monkeypatch):
    """The other run fetches everything while the first one is about to keep its first picture."""
    path = write_csv(tmp_path / "pets.csv", good(site))
    replace, others = os.replace, []

    def other_run_first(*names):
        monkeypatch.setattr(os, "replace", replace)
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 0)
            others.append(prepare(path, root=tmp_path / "root"))
        replace(*names)

    monkeypatch.setattr(links, "WORKERS", 1)
    monkeypatch.setattr(os, "replace", other_run_first)
    dataset = prepare(path, root=tmp_path / "root")
    assert others == [dataset]
    assert len(content(dataset)) == 12


def test_without_a_network_it_ends_soon(tmp_path):
    rows = [(f"http://127.0.0.1:9/{i}", ("cat", "dog")[i % 2]) for i in range(2000)]
    start = time.monotonic()
    with pytest.raises(DataError, match=r"20 of the first 20 links .* not reached"):
        prepare(write_csv(tmp_path / "pets.csv", rows), root=tmp_path / "root")
    assert time.monotonic() - start < 15


# --- S3 -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3():
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = {"endpoint_url": f"http://{host}:{port}", "region_name": "us-east-1"}
    owner = boto3.client("s3", aws_access_key_id="a", aws_secret_access_key="b", **address)
    owner.create_bucket(Bucket="bins")
    for i in range(10):
        key = f"bin-images/{i}.jpg"
        owner.put_object(Bucket="bins", Key=key, Body=picture(i), ACL="public-read")
    # As nobody, which is what the public bucket of bins takes.
    yield boto3.client("s3", config=Config(signature_version=UNSIGNED), **address)
    server.stop()


def test_keys_by_count_as_the_bins_are_published(s3, tmp_path):
    keys = {
        "1": [f"data/metadata/{i}.json" for i in range(5)],
        "2": [f"data/metadata/{i}.json" for i in (*range(5, 10), 99)],
    }
    path = tmp_path / "file_list.json"
    path.write_text(json.dumps(keys))
    with pytest.raises(DataError, match="hand in a client"):
        prepare(path, root=tmp_path / "root", bucket="bins", key="bin-images/{stem}.jpg")
    dataset = prepare(
        path,
        root=tmp_path / "root",
        shares=(0.6, 0.4),
        bucket="bins",
        key="bin-images/{stem}.jpg",
        s3=s3,
    )
    assert content(dataset) == {picture(i): "12"[i >= 5] for i in range(10)}
    (row,) = report(dataset)
    assert (row["line"], row["link"], row["label"]) == ("11", "s3://bins/bin-images/99.jpg", "2")
    assert "NoSuchKey" in row["problem"]


def test_whole_s3_addresses_and_links_mix(s3, site, tmp_path):
    rows = [(f"s3://bins/bin-images/{i}.jpg", "a") for i in range(4)]
    rows += [(f"{site.at}/ok/{i}", "b") for i in range(10, 14)]
    dataset = prepare(
        write_csv(tmp_path / "mixed.csv", rows), root=tmp_path / "root", shares=(0.5, 0.5), s3=s3
    )
    assert set(content(dataset).values()) == {"a", "b"}
    assert dataset.counts().to_numpy().tolist() == [[2, 2], [2, 2]]


# --- Reading lists ------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "lists" / "photos").mkdir(parents=True)
    for i in range(8):
        (tmp_path / "lists" / "photos" / f"{i}.png").write_bytes(picture(i))
    return tmp_path / "lists"


ROWS = [(f"photos/{i}.png", "ab"[i % 2]) for i in range(8)]
FORMS = {
    "comma.csv": "Label,Image URL\n" + "".join(f"{label},{link}\n" for link, label in ROWS),
    "semicolon.csv": "\ufeffurl;note;class\n" + "".join(f"{k};a,b;{v}\n" for k, v in ROWS),
    "tabs.tsv": "path\tcategory\n" + "".join(f"{k}\t{v}\n\n" for k, v in ROWS),
    "quoted.csv": 'note,key,breed\n"two\nlines",photos/0.png,a\n'
    + "".join(f'"x, y","{k}",{v}\n' for k, v in ROWS[1:]),
    "objects.json": json.dumps([{"image": k, "label": v} for k, v in ROWS]),
    "lines.jsonl": "\n".join(json.dumps({"label": v, "file": k, "width": 1}) for k, v in ROWS),
    "by-label.json": json.dumps({v: [k for k, w in ROWS if w == v] for v in "ab"}),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_list_gives_the_same_pictures(photos, name):
    path = photos / name
    path.write_text(FORMS[name], encoding="utf-8")
    assert {(row.link, row.label) for row in links.read_list(path).wanted} == set(ROWS)


def test_files_beside_the_list_are_prepared(photos, tmp_path):
    path = write_csv(photos / "list.csv", ROWS)
    dataset = prepare(path, root=tmp_path / "root", shares=(0.5, 0.5))
    assert content(dataset) == {picture(i): "ab"[i % 2] for i in range(8)}
    (photos / "photos" / "0.png").write_bytes(picture(99) + b"x")
    assert picture(0) not in content(prepare(path, root=tmp_path / "root", shares=(0.5, 0.5)))


def test_another_picture_of_as_many_bytes_beside_the_list_is_prepared(photos, tmp_path):
    path = write_csv(photos / "list.csv", ROWS)
    pad = bytes(9999 - len(picture(0))), bytes(9999 - len(picture(99)))
    (photos / "photos" / "0.png").write_bytes(picture(0) + pad[0])
    prepare(path, root=tmp_path / "root", shares=(0.5, 0.5))
    (photos / "photos" / "0.png").write_bytes(picture(99) + pad[1])
    dataset = prepare(path, root=tmp_path / "root", shares=(0.5, 0.5))
    assert picture(99) + pad[1] in content(dataset)


def test_half_a_character_in_a_list_is_a_problem_of_its_row(photos, tmp_path):
    odd = [("photos/7.png", "\ud83d"), ("photos/\udc80.png", "a")]
    rows = [{"image": link, "label": label} for link, label in [*ROWS[:7], *odd]]
    (photos / "list.json").write_text(json.dumps(rows))
    dataset = prepare(photos / "list.json", root=tmp_path / "root", shares=(0.5, 0.5))
    first, second = report(dataset)
    assert (first["link"], first["label"]) == ("photos/7.png", r"\ud83d")
    assert (second["link"], second["label"]) == (r"photos/\udc80.png", "a")
    assert "label holds a lone surrogate" in first["problem"]
    assert "link holds a lone surrogate" in second["problem"]


def test_a_row_without_a_use_does_not_keep_a_later_one_out(photos):
    listed = links.read_list(write_csv(photos / "list.csv", [("photos/0.png", ""), *ROWS]))
    assert [(row.link, row.label) for row in listed.wanted] == ROWS
    assert [problem.problem for problem in listed.problems] == ["no label"]


BAD_ROWS = [
    ("", "a", "no link"),
    ("photos/7.png", "", "no label"),
    ("photos/7.png", "../a", "cannot be the name of a folder"),
    ("photos/7.png", ".a", "cannot be the name of a folder"),
    ("photos/0.png", "b", "listed before, in line 2, as “a”"),
    ("ftp://host/1.png", "a", "not an http, https or s3 link"),
    ("file:///etc/passwd", "a", "not an http, https or s3 link"),
    ("https://", "a", "not a link"),
    ("http://[::1/a.png", "a", "not a link"),
    ("s3://bucket", "a", "not a link"),
    ("/etc/hostname", "a", "outside the folder of the list"),
    ("../outside.png", "a", "outside the folder of the list"),
    ("photos/none.png", "a", "no such file"),
]


@pytest.mark.parametrize("row", BAD_ROWS, ids=lambda row: f"{row[0]}-{row[1]}")
def test_a_bad_row_is_a_problem_and_nothing_else(photos, row):
    (photos.parent / "outside.png").write_bytes(picture(1))
    listed = links.read_list(write_csv(photos / "list.csv", [*ROWS[:7], row[:2]]))
    assert len(listed.wanted) == 7
    ((line, link, label, problem),) = listed.problems
    assert (line, link, label) == (9, *row[:2])
    assert row[2] in problem


WRONG_LISTS = {
    "no link column.csv": ("picture,label\na,b\n", "no column for the link among picture, label"),
    "no label column.csv": ("url,animal\na,b\n", "no column for the label among url, animal"),
    "no label key.jsonl": ('{"url": "a"}\n', "no column for the label"),
    "empty.csv": ("", "lists no picture"),
    "header.csv": ("url,label\n", "lists no picture"),
    "quotes.csv": ('url,label\n"a,b\n', "is not a CSV file"),
    "text.json": ("hello", "neither JSON nor JSON lines"),
    "number.json": ("3", "neither a JSON list of objects"),
    "nested.json": ('{"data": {"a": 1}}', "no column for the link among data"),
    "mostly bad.csv": ("url,label\nx,a\ny,b\n", "2 of the 2 lines .* first is line 2, x: no such"),
    "one label.csv": ("url,label\nphotos/1.png,a\nphotos/2.png,a\n", "two or more labels"),
}


@pytest.mark.parametrize("name", WRONG_LISTS)
def test_a_wrong_list_is_told_in_a_sentence(photos, tmp_path, name):
    text, words = WRONG_LISTS[name]
    (photos / name).write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        prepare(photos / name, root=tmp_path / "root")
    assert str(tmp_path) not in str(caught.value)
    assert not list(tmp_path.glob("root/*-seed*"))


def test_a_list_in_another_encoding_is_told(photos):
    (photos / "latin.csv").write_bytes("url,label\nphotos/1.png,Été\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        prepare(photos / "latin.csv")


def test_a_class_without_most_of_its_pictures_is_refused(photos, tmp_path):
    for i in (1, 3, 5):
        (photos / "photos" / f"{i}.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"3 of the 4 pictures of “b” .* photos/1.png: this is not"):
        prepare(write_csv(photos / "list.csv", ROWS), root=tmp_path / "root", shares=(0.5, 0.5))
