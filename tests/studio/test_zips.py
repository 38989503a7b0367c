"""Zips of pictures: fetched from a server that breaks off, unpacked without trusting them."""

import contextlib
import io
import stat
import threading
import warnings
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from samples import encode, noise

from studio import zips
from studio.datasets import prepare
from studio.pictures import DataError

FILES = 12  # Of each class.


def zip_of(members):
    """The bytes of a zip with {name or ZipInfo: content}."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def dogs():
    return {
        f"dogImages/{name}/é {i}.png": encode(noise(seed=100 * place + i))
        for place, name in enumerate(("001.Affenpinscher", "Shih tzu"))
        for i in range(FILES)
    }


@contextlib.contextmanager
def server(content, cut_at=None, ranges=True, status=200):
    """Serve `content` at every address; the first reply breaks off after `cut_at` bytes."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            seen.append(wanted)
            first = int(wanted.split("=")[1].rstrip("-")) if wanted and ranges else 0
            if status == 200 and first >= len(content):
                self.send_response(416)
                self.end_headers()
                return
            self.send_response(206 if first else status)
            body = content[first:]
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:cut_at] if cut_at and len(seen) == 1 else body)

        def log_message(self, *args):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/dog-project/dogImages.zip", seen
    finally:
        running.shutdown()
        running.server_close()


@pytest.mark.parametrize("end", [".zip", ".ZIP?dl=1"])
def test_a_link_to_a_zip_is_a_data_set(end, tmp_path, capsys):
    with server(zip_of({**dogs(), "__MACOSX/dogImages/._x": b"x"})) as (url, seen):
        url = url.removesuffix(".zip") + end
        dataset = prepare(url, root=tmp_path)
        assert dataset.class_names == ("001.Affenpinscher", "Shih tzu")
        assert dataset.counts(totals=True).loc["total", "total"] == 2 * FILES
        assert dataset.name == "dogImages"
        assert prepare(url, root=tmp_path) == dataset
    assert seen == [None]
    assert f"dogImages{end[:4]}: downloading" in capsys.readouterr().out


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_breaks_off_goes_on(ranges, tmp_path):
    content = zip_of(dogs())
    with server(content, cut_at=1000, ranges=ranges) as (url, seen):
        path = zips.fetch(url, tmp_path)
    assert path.read_bytes() == content
    assert seen == [None, "bytes=1000-"]
    assert [each.name for each in tmp_path.iterdir()] == ["dogImages.zip"]


def test_two_addresses_whose_files_have_one_name_are_two_data_sets(tmp_path):
    others = {name.replace("Shih tzu", "Pug"): content for name, content in dogs().items()}
    with server(zip_of(dogs())) as (url, _), server(zip_of(others)) as (other_url, _):
        assert prepare(url, root=tmp_path).class_names == ("001.Affenpinscher", "Shih tzu")
        assert prepare(other_url, root=tmp_path).class_names == ("001.Affenpinscher", "Pug")


def test_an_archive_packed_anew_is_unpacked_anew(tmp_path):
    """With a picture in another class it may be of the same size to the byte."""
    pictures = [encode(noise(seed=i)) for i in range(2 * FILES)]
    sizes = []
    for cats in (FILES, FILES - 1):
        names = [f"{'cat' if i < cats else 'cow'}/{i:02}.png" for i in range(2 * FILES)]
        (tmp_path / "pets.zip").write_bytes(zip_of(dict(zip(names, pictures))))
        sizes.append((tmp_path / "pets.zip").stat().st_size)
        dataset = prepare(tmp_path / "pets.zip", root=tmp_path)
        assert dataset.counts().sum(axis=1)["cat"] == cats
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("names", [("d/a/1.png", "d/a/1.png"), ("d/a.png", "d/a.png/1.png")])
def test_names_that_cannot_stand_side_by_side_are_told(names, tmp_path):
    archive = tmp_path / "dogs.zip"
    with warnings.catch_warnings(), zipfile.ZipFile(archive, "w") as opened:
        warnings.simplefilter("ignore")  # Of a name that is there twice.
        for name in names:
            opened.writestr(name, b"x")
    with pytest.raises(DataError, match=r"“dogs.zip” cannot be unpacked here \(.*exists|directory"):
        zips.unzip(archive, tmp_path / "dogs")
    assert [path.name for path in tmp_path.iterdir()] == ["dogs.zip"]


def test_what_came_is_kept_for_the_next_call(tmp_path, monkeypatch):
    content = zip_of(dogs())
    monkeypatch.setattr(zips, "TRIES", 1)
    with server(content, cut_at=1000) as (url, seen):
        with pytest.raises(DataError, match="run this again to go on"):
            zips.fetch(url, tmp_path)
        assert zips.fetch(url, tmp_path).read_bytes() == content
    assert seen == [None, "bytes=1000-"]


def test_a_whole_partial_file_is_taken(tmp_path):
    content = zip_of(dogs())
    (tmp_path / ".dogImages.zip.partial").write_bytes(content)
    with server(content) as (url, _):
        assert zips.fetch(url, tmp_path).read_bytes() == content


def test_what_is_not_there_or_too_large_is_refused_in_a_sentence(tmp_path):
    with server(b"gone", status=404) as (url, _), pytest.raises(DataError, match="answers 404"):
        zips.fetch(url, tmp_path)
    with server(bytes(5000)) as (url, _), pytest.raises(DataError, match="more than"):
        zips.fetch(url, tmp_path, max_bytes=4000)
    assert not (tmp_path / "dogImages.zip").exists()


def link_info():
    info = zipfile.ZipInfo("dogs/a/link.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    "name",
    ["../outside.png", "dogs/../../outside.png", "/outside.png", "C:/outside.png", "a\\..\\b.png"],
)
def test_a_name_that_leads_outside_is_refused(name, tmp_path):
    archive = tmp_path / "evil.zip"
    archive.write_bytes(zip_of({"dogs/a/1.png": b"x", name: b"x"}))
    with pytest.raises(DataError, match="leads outside"):
        zips.unzip(archive, tmp_path / "to" / "dogs")
    assert not (tmp_path / "to").exists() or not list((tmp_path / "to").iterdir())
    assert not (tmp_path / "outside.png").exists()


def test_a_link_in_a_zip_is_refused(tmp_path):
    archive = tmp_path / "evil.zip"
    archive.write_bytes(zip_of({link_info(): "/etc/passwd"}))
    with pytest.raises(DataError, match="is a link"):
        zips.unzip(archive, tmp_path / "dogs")


def test_a_zip_that_unpacks_to_too_much_is_refused(tmp_path):
    archive = tmp_path / "bomb.zip"
    archive.write_bytes(zip_of({"dogs/a/1.png": bytes(3_000_000)}))
    assert archive.stat().st_size < 10_000
    with pytest.raises(DataError, match="refused: it unpacks to 1 files"):
        zips.unzip(archive, tmp_path / "dogs", max_bytes=1_000_000)


def test_a_zip_that_lies_about_its_sizes_is_refused(tmp_path):
    content = bytearray(zip_of({"dogs/a/1.png": bytes(3_000_000)}))
    true, claimed = (3_000_000).to_bytes(4, "little"), (1_000).to_bytes(4, "little")
    assert content.count(true) == 2
    archive = tmp_path / "bomb.zip"
    archive.write_bytes(bytes(content.replace(true, claimed)))
    with pytest.raises(DataError, match="damaged"):
        zips.unzip(archive, tmp_path / "dogs", max_bytes=1_000_000)
    assert not (tmp_path / "dogs").exists()


@pytest.mark.parametrize("harm", [lambda data: data[:-300], lambda data: b"<html>Sign in</html>"])
def test_a_damaged_zip_is_told_in_a_sentence(harm, tmp_path):
    archive = tmp_path / "dogs.zip"
    archive.write_bytes(harm(zip_of(dogs())))
    with pytest.raises(DataError, match=r"“dogs.zip” is damaged"):
        prepare(archive, root=tmp_path / "root")
    assert not list(Path(tmp_path / "root").rglob("*.png"))


def test_a_zip_here_is_a_data_set_and_another_of_its_name_is_another(tmp_path):
    archive = tmp_path / "my photos.zip"
    archive.write_bytes(zip_of(dogs()))
    first = prepare(archive, root=tmp_path / "root")
    assert first.counts(totals=True).loc["total", "total"] == 2 * FILES
    more = {f"dogImages/third/{i}.png": encode(noise(seed=900 + i)) for i in range(FILES)}
    archive.write_bytes(zip_of({**dogs(), **more}))
    assert len(prepare(archive, root=tmp_path / "root").class_names) == 3
