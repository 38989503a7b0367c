"""From the bytes of a picture to the tensor a model sees, for training and serving alike."""

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps

from vision.errors import PictureError

FORMATS = ("JPEG", "PNG", "WEBP")
# The size of request that SageMaker's real-time endpoints accept.
MAX_BYTES = 6 * 1024 * 1024
# 25 megapixels are 75 MB once decoded to RGB: what one worker of a small endpoint can afford.
MAX_PIXELS = 25_000_000


@dataclass(frozen=True)
class Preprocessing:
    """How pictures become tensors: size in pixels, 1 (grey) or 3 (RGB) channels, mean and std.

    `mean` and `std` have one value a channel, on the scale where black is 0 and white is 1.
    """

    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Turn uint8 pictures (N, C, H, W) into float32 ones of about zero mean and unit std."""
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
        return (images.float() / 255 - mean) / std


def open_picture(
    data: bytes, max_bytes: int | None = None, formats: tuple[str, ...] = FORMATS
) -> Image.Image:
    """Open a picture and check what its header says; no pixel is decoded yet.

    Raises PictureError when it is empty, of none of the `formats` (Pillow's names), longer than
    `max_bytes`, or claims more than MAX_PIXELS pixels.
    """
    if max_bytes is not None and len(data) > max_bytes:
        raise PictureError(
            f"the picture has {len(data) / 1e6:.1f} MB and at most {max_bytes / 1e6:.1f} MB "
            "are accepted: send a smaller copy",
            status=413,
        )
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise _too_many_pixels() from error
    except Exception as error:  # Whatever a decoder raises here, the bytes are at fault.
        raise PictureError("this is not a readable JPEG, PNG or WebP picture") from error
    if image.width * image.height > MAX_PIXELS:
        raise _too_many_pixels(f"{image.width}×{image.height} = ")
    return image


def _too_many_pixels(size: str = "") -> PictureError:
    message = f"the picture claims {size}more than {MAX_PIXELS / 1e6:.0f} million pixels"
    return PictureError(f"{message}: scale it down", status=413)


def decode(image: Image.Image, image_size: int, channels: int) -> torch.Tensor:
    """Decode an opened picture to a uint8 tensor (C, image_size, image_size).

    Turned upright by its EXIF orientation, transparent parts on white (grey pictures too),
    converted to grey (ITU-R 601 luma) or RGB, its central square resized with antialiasing.
    That is "short side to size, then crop the centre" without ever building the long side.

    Raises PictureError when the pixels are truncated or damaged.
    """
    try:
        # JPEG only: decode at a half, quarter or eighth of the size where that is still twice
        # what is asked for. Other formats ignore it.
        image.draft(None, (2 * image_size, 2 * image_size))
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # Whatever a decoder raises here, the bytes are at fault.
        raise PictureError("the picture is truncated or damaged") from error
    image = _upright(image)
    image = _flatten(image, "L" if channels == 1 else "RGB")
    if image.size != (image_size, image_size):
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        image = image.resize(
            (image_size, image_size),
            Image.Resampling.BILINEAR,
            box=(left, top, left + side, top + side),
        )
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels.view(image_size, image_size, channels).permute(2, 0, 1).contiguous()


def _upright(image: Image.Image) -> Image.Image:
    """Return the picture turned by its EXIF orientation, or as it is where that is unreadable."""
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # Damaged metadata; the pixels are whole.
        return image


def _flatten(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        # PIL would clip 16-bit greys at 255; the upper byte is the picture.
        upper = np.asarray(image).astype(np.int32) >> 8
        image = Image.fromarray(upper.clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)
