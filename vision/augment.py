"""Random changes of training pictures that do not change what they show."""

from collections.abc import Callable, Sequence

import torch

from vision.errors import ExpectedError

Transform = Callable[[torch.Tensor], torch.Tensor]
# A shift reaches so small a part of the side: one pixel of Fashion-MNIST's 28.
SHIFT = 20
# The smallest part of a photo that a crop shows. Training from scratch on a million photos uses
# 0.08; with few photos and a pretrained network, more must remain to be recognised.
CROP_SCALE = (0.35, 1.0)


AUGMENTATIONS = ("shift", "flip", "vflip", "crop", "color", "erase")


def parse_augment(text: str) -> tuple[str, ...]:
    """Return the names in "shift-flip", "crop,flip,color" or "none".

    Raises ExpectedError for a name that is not in AUGMENTATIONS.
    """
    names = tuple(text.replace("-", ",").split(",")) if text != "none" else ()
    for name in names:
        if name not in AUGMENTATIONS:
            raise ExpectedError(
                f"--augment knows no {name!r}: join any of {', '.join(AUGMENTATIONS)} by commas, "
                "or say none"
            )
    return names


def build_augment(names: Sequence[str], size: int, mean: Sequence[float]) -> Transform | None:
    """Return the change for uint8 pictures (..., C, size, size), or None where there is none.

    One call draws once: all pictures of a batch given to it change in the same way. `mean` (one
    value a channel, white is 1) fills what is erased. The draws come from PyTorch's global
    generator.
    """
    if not names:
        return None
    # Takes two seconds to import, which --help and the training of a head alone can spare.
    from torchvision.transforms import v2

    fill = [round(255 * value) for value in mean]
    steps = {
        # What a shift uncovers repeats the edge, so that dark and light backgrounds both go on.
        "shift": lambda: v2.RandomCrop(size, padding=max(1, size // SHIFT), padding_mode="edge"),
        "flip": lambda: v2.RandomHorizontalFlip(),
        "vflip": lambda: v2.RandomVerticalFlip(),
        "crop": lambda: v2.RandomResizedCrop(size, scale=CROP_SCALE, antialias=True),
        "color": lambda: v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3),
        "erase": lambda: v2.RandomErasing(p=0.5, scale=(0.02, 0.2), value=fill),
    }
    return v2.Compose([steps[name]() for name in names])
