"""A folder of pictures as people have them: many formats, odd names, broken files, a rare class."""

import io

import numpy as np
from PIL import Image

RARE = "très rare"
PER_CLASS = 14
# What a viewer must do about it: turn the picture a quarter to the right (EXIF 2.32, tag 0x0112).
ORIENTATION, TURN_RIGHT = 0x0112, 6


def make_odd_folder(folder, seed=0):
    """Make three classes of PER_CLASS pictures, one of three, and two broken files; all seeded."""
    rng = np.random.default_rng(seed)
    for name, picture in (("Été à la plage", beach), ("chats & chiens", spots), ("plain", stripes)):
        (folder / name).mkdir(parents=True)
        for number in range(PER_CLASS):
            save(picture(rng), folder / name, number)
    (folder / RARE).mkdir()
    for number in range(3):
        save(rings(rng), folder / RARE, number)
    whole = io.BytesIO()
    beach(rng).save(whole, "JPEG")
    (folder / "plain" / "cut short.jpg").write_bytes(whole.getvalue()[:-900])
    (folder / "chats & chiens" / "a text.jpg").write_text("This is no picture.\n")
    (folder / "plain" / "notes.txt").write_text("Taken in May.\n")
    return folder


def save(picture, folder, number):
    """Write the picture in one of seven ways in which pictures come."""
    stem = folder / f"photo é {number:02d}"
    if number % 7 == 0:
        picture.save(f"{stem}.png")
    elif number % 7 == 1:
        picture.save(f"{stem}.webp")
    elif number % 7 == 2:
        picture.save(f"{stem}.gif")
    elif number % 7 == 3:
        picture.convert("L").save(f"{stem}.jpeg")
    elif number % 7 == 4:
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        picture.save(f"{stem}.png")
    elif number % 7 == 5:
        exif = Image.Exif()
        exif[ORIENTATION] = TURN_RIGHT
        picture.transpose(Image.Transpose.ROTATE_90).save(f"{stem}.JPG", exif=exif)
    else:
        # As a phone's: far more pixels than anyone needs.
        picture.resize((1800, 1350)).save(f"{stem}.jpg")


def noisy(pixels, rng):
    pixels = pixels + rng.normal(0, 20, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def rows_and_columns():
    return np.indices((150, 200))


def beach(rng):
    rows, _ = rows_and_columns()
    sea = rows[..., None] > rng.integers(60, 90)
    return noisy(np.where(sea, [194, 178, 128], [110, 170, 230]), rng)


def spots(rng):
    rows, columns = rows_and_columns()
    pixels = np.full((150, 200, 3), 230.0)
    for _ in range(12):
        y, x, radius = rng.integers(0, 150), rng.integers(0, 200), rng.integers(8, 20)
        pixels[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = [60, 40, 30]
    return noisy(pixels, rng)


def stripes(rng):
    _, columns = rows_and_columns()
    bright = (columns // rng.integers(8, 14))[..., None] % 2 == 0
    return noisy(np.where(bright, [40, 120, 60], [200, 230, 200]), rng)


def rings(rng):
    rows, columns = rows_and_columns()
    away = np.hypot(rows - rng.integers(50, 100), columns - rng.integers(70, 130))
    bright = (away // rng.integers(8, 14))[..., None] % 2 == 0
    return noisy(np.where(bright, [200, 40, 40], [250, 220, 90]), rng)
