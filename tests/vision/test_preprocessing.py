import contextlib
import io
import time

import numpy as np
import pytest
import torch
from PIL import Image
from samples import encode, huge_png, noise

from vision.errors import PictureError
from vision.preprocessing import Preprocessing, decode, open_picture


def tensor(data, image_size, channels):
    return decode(open_picture(data), image_size, channels)


def test_a_picture_of_the_right_size_keeps_its_pixels():
    pixels = noise(16, 16)
    assert np.array_equal(tensor(encode(pixels), 16, 3).permute(1, 2, 0), pixels)
    grey = noise(16, 16, channels=1)
    assert np.array_equal(tensor(encode(grey), 16, 1)[0], grey)


def test_the_centre_of_a_long_picture_remains():
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 200
    assert torch.equal(tensor(encode(pixels), 10, 3)[:, :, 1:-1], torch.full((3, 10, 8), 200))


def test_shrinking_averages_instead_of_picking_pixels():
    board = np.indices((64, 64)).sum(0) % 2 * 255
    shrunk = tensor(encode(board), 8, 1).float()
    assert (shrunk - 127.5).abs().max() < 10


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (1, 1)])
def test_a_strip_costs_no_more_than_its_own_pixels(size):
    start = time.perf_counter()
    assert tensor(encode(np.full(size, 77)), 224, 3).unique().tolist() == [77]
    assert time.perf_counter() - start < 2


def test_exif_orientation_turns_the_picture_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was turned: rotate by 90 degrees clockwise to see it upright.
    pixels = noise(16, 16)
    turned = tensor(encode(pixels, exif=exif), 16, 3)
    assert np.array_equal(turned.permute(1, 2, 0), np.rot90(pixels, -1))


def test_damaged_metadata_do_not_cost_the_picture():
    pixels = noise(16, 16)
    damaged = tensor(encode(pixels, "PNG", exif=b"Exif\0\0no header of a TIFF"), 16, 3)
    assert np.array_equal(damaged.permute(1, 2, 0), pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_parts_become_white(channels):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4, :, 3] = 255
    image = tensor(encode(pixels), 8, channels)
    assert (image[:, :4] == 0).all()
    assert (image[:, 4:] == 255).all()


def test_a_transparent_colour_of_a_palette_becomes_white():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30] + [0] * 765)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0)
    assert tensor(buffer.getvalue(), 8, 3).unique().tolist() == [255]


def test_sixteen_bit_greys_keep_their_upper_byte():
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), 0x4321, np.uint16)).save(buffer, "PNG")
    assert tensor(buffer.getvalue(), 8, 1).unique().tolist() == [0x43]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_any_damage_is_refused_or_survived(kind):
    data = encode(noise(), kind)
    rng = np.random.default_rng(0)
    for _ in range(60):
        broken = bytearray(data[: rng.integers(1, len(data))])
        broken[rng.integers(len(broken))] ^= 255
        with contextlib.suppress(PictureError):
            assert tensor(bytes(broken), 16, 3).shape == (3, 16, 16)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_picture_is_refused(kind):
    data = encode(noise(), kind)
    with pytest.raises(PictureError, match="truncated") as caught:
        tensor(data[: len(data) // 2], 16, 3)
    assert caught.value.status == 400


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg/>", b"GIF89a" + b"\0" * 50])
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(PictureError, match="not a readable") as caught:
        open_picture(data)
    assert caught.value.status == 400


@pytest.mark.parametrize("side", [5_001, 20_000, 60_000])
def test_too_many_pixels_are_refused_by_the_header_alone(side):
    start = time.perf_counter()
    with pytest.raises(PictureError, match="25 million pixels") as caught:
        open_picture(huge_png(side, side))
    assert caught.value.status == 413
    assert time.perf_counter() - start < 0.5


def test_too_many_bytes_are_refused():
    with pytest.raises(PictureError, match="smaller copy") as caught:
        open_picture(encode(noise()), max_bytes=100)
    assert caught.value.status == 413


def test_normalise_known_answer():
    preprocessing = Preprocessing(2, 1, (0.5,), (0.25,))
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    assert preprocessing.normalise(images).flatten().tolist() == [-2.0, 2.0]
