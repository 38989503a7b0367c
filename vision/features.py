"""What a frozen backbone makes of pictures, computed once and kept in files for later runs."""

import contextlib
import copy
import functools
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_eval

from vision.classifier import forward_batch_size
from vision.data import Entry
from vision.distributed import Group
from vision.errors import ExpectedError
from vision.models import Network
from vision.partial import remove_left_over
from vision.preprocessing import Preprocessing

# A part of every file's name: another number makes all earlier files count for nothing.
FORMAT_VERSION = 2
SECONDS_BETWEEN_PROGRESS = 5
# A job's log shows a line when it is printed, not when a buffer is full.
say_at_once = functools.partial(print, flush=True)


def view_pictures(images: torch.Tensor, view: int, first: int = 0) -> torch.Tensor:
    """Return a fixed change of uint8 pictures (N, C, H, W), of the same shape and type.

    View 0 is the picture, view 2 and up resized crops of it, 40 to 100% of the area with sides of
    3:4 to 4:3; odd views are mirrored. A crop depends on the view and the picture's place in the
    split, `first` for the first one here, so it is the same in every run.
    """
    if view >= 2:
        images = _crop(images, _crops(view, first, len(images)))
    return images.flip(-1) if view % 2 else images


def _crops(view: int, first: int, count: int) -> torch.Tensor:
    """Return affine maps (N, 2, 3) from the result to the picture, both from -1 to 1."""
    # One stream of random numbers a view: skipping is cheap beside any network.
    generator = torch.Generator().manual_seed(view)
    area, ratio, x, y = torch.rand(first + count, 4, generator=generator)[first:].unbind(1)
    sides = (0.4 + 0.6 * area).sqrt()
    stretch = (4 / 3) ** (ratio - 0.5)
    width, height = (sides * stretch).clamp(max=1), (sides / stretch).clamp(max=1)
    maps = torch.zeros(count, 2, 3)
    maps[:, 0, 0], maps[:, 1, 1] = width, height
    maps[:, 0, 2], maps[:, 1, 2] = (1 - width) * (2 * x - 1), (1 - height) * (2 * y - 1)
    return maps


def _crop(images: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    pixels = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return pixels.round().to(torch.uint8)


def folded(backbone: nn.Module) -> nn.Module:
    """Return a copy for evaluation in which convolutions do the work of the batch norms after them.

    Its outputs are the same within rounding.
    """
    backbone = copy.deepcopy(backbone).eval()
    for parent in list(backbone.modules()):
        # In all of our networks what is defined next is what is computed next.
        for (name, conv), (next_name, norm) in itertools.pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                parent.set_submodule(name, fuse_conv_bn_eval(conv, norm))
                # timm's batch norms contain the activation.
                parent.set_submodule(next_name, nn.Sequential(*norm.children()))
    return backbone


def backbone_features(
    network: Network,
    preprocessing: Preprocessing,
    images: torch.Tensor,
    view: int = 0,
    say: Callable[[str], None] = say_at_once,
    dtype: torch.dtype = torch.float32,
    offset: int = 0,
) -> torch.Tensor:
    """Return float32 features (N, feature_dim) on the CPU for a view of uint8 (N, C, H, W).

    They are computed under autocast to `dtype`. The first picture here is number `offset` of its
    split. Says the speed every 5 seconds.
    """
    device = next(network.parameters()).device
    # Both leave the features as they are, within rounding; `python benchmarks/training.py folding`
    # measures what they gain, and bfloat16 on top.
    backbone = folded(network.backbone).to(memory_format=torch.channels_last)
    features = torch.empty(len(images), network.feature_dim)
    start = last = time.perf_counter()
    step = forward_batch_size(images)
    for first in range(0, len(images), step):
        batch = view_pictures(images[first : first + step], view, offset + first)
        X = preprocessing.normalise(batch.to(device)).contiguous(memory_format=torch.channels_last)
        # Only here: a head cannot be trained on tensors that were made in this mode.
        with torch.inference_mode(), torch.autocast(device.type, dtype, dtype != torch.float32):
            features[first : first + step] = backbone(X)
        now = time.perf_counter()
        if now - last >= SECONDS_BETWEEN_PROGRESS:
            last, done = now, first + len(batch)
            speed = done / (now - start)
            say(f"  view {view}: {done} of {len(images)} pictures, {speed:.0f} pictures/s")
    return features


def cached_features(
    network: Network,
    preprocessing: Preprocessing,
    entries: Sequence[Entry],
    data_hash: str,
    load_images: Callable[[Sequence[Entry]], torch.Tensor],
    views: int,
    folders: Sequence[Path],
    say: Callable[[str], None] = say_at_once,
    dtype: torch.dtype = torch.float32,
    must_keep: bool = False,
    group: Group | None = None,
) -> tuple[torch.Tensor, list[str]]:
    """Return float32 features (views, N, feature_dim) of the pictures behind `data_hash`.

    And, without repetition, the precisions that they were computed in. Views that one of the
    `folders` holds are read, where they were computed in float32 or `dtype`; only the others are
    computed, in `dtype`, from the uint8 pictures (n, C, H, W) that `load_images` returns for
    entries, each process of the group its share. One process of each host keeps them in the first
    folder that can be written; where none can, `must_keep` raises ExpectedError. Where left and
    right matter only one view makes sense: the second is mirrored.
    """
    group = group or Group()
    dtypes = (torch.float32, dtype)
    keys = _cache_keys(network, preprocessing, data_hash, range(views), dtypes)
    found = {view: _read(each, network.feature_dim, folders, say) for view, each in keys.items()}
    # Hosts may hold different files: what one of them lacks is computed by all.
    same = {view: group.all_equal(str(found[view] and found[view][1])) for view in found}
    missing = [view for view in found if found[view] is None or not same[view]]
    if missing:
        start = time.perf_counter()
        share = group.share(len(entries))
        mine = entries[share]
        images = load_images(mine) if mine else None
        for view in missing:
            own = torch.empty(0, network.feature_dim)
            if images is not None:
                own = backbone_features(
                    network, preprocessing, images, view, say, dtype, share.start
                )
            features = group.joined(own, len(entries))
            found[view] = features, dtype
            reasons = _write(features, keys[view][dtype], folders) if group.local_rank == 0 else ""
            if reasons and must_keep:
                raise ExpectedError(f"the features cannot be written: {reasons}")
            if reasons:
                say(f"the features cannot be kept ({reasons}): the next run computes them again")
        seconds = time.perf_counter() - start
        speed = len(missing) * len(entries) / seconds
        say(
            f"computed the features of {len(entries)} pictures in {len(missing)} view(s) with "
            f"{network.name} in {seconds:.1f} seconds, {speed:.0f} pictures/s"
        )
    precisions = sorted({str(kind).removeprefix("torch.") for _, kind in found.values()})
    result = torch.empty(views, *found[0][0].shape)
    for view in range(views):
        # Given up one by one, so that there are never two copies of all.
        result[view] = found.pop(view)[0]
    return result, precisions


def _cache_keys(
    network: Network,
    preprocessing: Preprocessing,
    data_hash: str,
    views: Iterable[int],
    dtypes: Sequence[torch.dtype],
) -> dict[int, dict[torch.dtype, str]]:
    """Return for each view a SHA-256 over all that it depends on, for each of the types."""
    digest = hashlib.sha256()
    for name, tensor in network.backbone.state_dict().items():
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(_bytes(tensor.cpu()))
    dependence = {
        "format": FORMAT_VERSION,
        "data": data_hash,
        "model": network.name,
        "weights": digest.hexdigest(),
        **asdict(preprocessing),
    }

    def key(view: int, dtype: torch.dtype) -> str:
        mark = {} if dtype == torch.float32 else {"computed_in": str(dtype)}
        text = json.dumps({**dependence, **mark, "view": view}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    return {view: {dtype: key(view, dtype) for dtype in dtypes} for view in views}


def _bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.detach().contiguous().reshape(-1).numpy()).cast("B")


def _read(
    keys: dict[torch.dtype, str],
    feature_dim: int,
    folders: Sequence[Path],
    say: Callable[[str], None],
) -> tuple[torch.Tensor, torch.dtype] | None:
    """Return the first sound features among those that the keys name, and their key's type."""
    for (dtype, key), folder in itertools.product(keys.items(), folders):
        path = Path(folder, f"{key}.safetensors")
        if not path.is_file():
            continue
        try:
            with safe_open(path, "pt") as file:
                features, metadata = file.get_tensor("features"), file.metadata() or {}
        except (OSError, SafetensorError) as error:
            say(f"{path} cannot be read ({error}): computing the features again")
            continue
        sound = features.dtype == torch.float32 and features.shape[1:] == (feature_dim,)
        if sound and metadata.get("sha256") == hashlib.sha256(_bytes(features)).hexdigest():
            say(f"read the features of {len(features)} pictures from {path}")
            return features, dtype
        say(f"{path} is damaged: computing the features again")
    return None


def _write(features: torch.Tensor, key: str, folders: Sequence[Path]) -> str:
    """Write them into the first folder that takes them; return why none did, or nothing."""
    metadata = {"sha256": hashlib.sha256(_bytes(features)).hexdigest()}
    reasons = []
    for folder in map(Path, folders):
        # Several runs may compute the same: each writes its own file, the last one stays.
        partial = folder / f".{key}-{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            remove_left_over(folder, f".{key}-*")
            save_file({"features": features}, partial, metadata)
            partial.replace(folder / f"{key}.safetensors")
            return ""
        except (OSError, SafetensorError) as error:
            reasons.append(f"{folder}: {error}")
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
    return "; ".join(reasons)
