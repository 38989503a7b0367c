"""One process or many: the same code, with sums that run over all of them.

torchrun tells each process its place in RANK, WORLD_SIZE and LOCAL_RANK. A process that was
started without it is rank 0 of 1, and every operation here returns at once.
"""

import atexit
import hashlib
import os
import sys
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True)
class Group:
    """The processes that train together, seen from one of them."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def join(cls) -> "Group":
        """Meet the other processes that torchrun started, if it did."""
        size = int(os.environ.get("WORLD_SIZE", 1))
        if size == 1:
            return cls()
        # Small flags go over the CPU even where gradients go between GPUs.
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        return cls(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", 0)))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def say(self, text: object) -> None:
        """Print a line, at once, and once for all processes."""
        if self.is_main:
            print(text, flush=True)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum over all processes."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def share(self, count: int) -> slice:
        """Return which of so many rows, in order, are this process's to compute."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def joined(self, mine: torch.Tensor, count: int) -> torch.Tensor:
        """Return all rows (count, ...) on the CPU, of which each process gives its share."""
        if self.size == 1:
            return mine
        everyone = mine.new_zeros(count, *mine.shape[1:])
        everyone[self.share(count)] = mine
        dist.all_reduce(everyone)
        return everyone

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether any process has set it."""
        if self.size == 1:
            return list(flags)
        return (self.sum(torch.tensor(flags, dtype=torch.long)) > 0).tolist()

    def all_equal(self, text: str) -> bool:
        """Return whether every process has the same text."""
        if self.size == 1:
            return True
        mine = torch.tensor(list(hashlib.sha256(text.encode()).digest()))
        main = mine.clone()
        dist.broadcast(main, src=0)
        return not self.any(not torch.equal(mine, main))[0]

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return a model whose gradients are averaged and whose batch norm sees every process.

        With one process that is the model itself.
        """
        if self.size == 1:
            return model
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.forward = partial(_batch_norm_over_all, module)
        ids = [device] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)

    def leave(self) -> None:
        """Part from the other processes, and end this one of many: call it last.

        DistributedDataParallel keeps Gloo's threads alive, and one that still lets go of a tensor
        while the interpreter ends aborts the process, one training in ten with torch 2.15. So it
        ends like a forked child of multiprocessing: what atexit holds is called, and no more.
        """
        if self.size == 1:
            return
        dist.destroy_process_group()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _batch_norm_over_all(norm: nn.modules.batchnorm._BatchNorm, x: torch.Tensor) -> torch.Tensor:
    """Normalise (N, C, …) by mean and variance over the pictures of all processes.

    PyTorch's SyncBatchNorm does this on GPUs only. Ioffe & Szegedy 2015, arXiv:1502.03167.
    """
    if not norm.training:
        return type(norm).forward(norm, x)
    y = _OverAll.apply(x, norm.weight, norm.bias, norm)
    # timm's batch norm carries the activation that follows it.
    return norm.act(norm.drop(y)) if hasattr(norm, "act") else y


class _OverAll(torch.autograd.Function):
    """A batch norm whose statistics are those of all processes.

    Only the statistics and two sums for each channel travel; what is done to each pixel is done by
    PyTorch's own kernels. Written with tensors instead, a step of efficientnet_lite0 at 224 pixels
    takes twice as long.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, norm):
        mean, variance, count = _statistics(x)
        with torch.no_grad():
            norm.num_batches_tracked += 1
            norm.running_mean.lerp_(mean, norm.momentum)
            # The running variance is the unbiased one, as PyTorch's own.
            norm.running_var.lerp_(variance * count / (count - 1), norm.momentum)
        inverse = torch.rsqrt(variance + norm.eps)
        ctx.save_for_backward(x, weight, mean, inverse, count)
        ctx.eps = norm.eps
        return _affine(x, weight * inverse, bias, mean)

    @staticmethod
    def backward(ctx, dy):
        x, weight, mean, inverse, count = ctx.saved_tensors
        # As if the statistics were of this process's pictures alone …
        dx, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, None, None, mean, inverse, True, ctx.eps, [True, True, True]
        )
        own = torch.cat([d_weight, d_bias])
        everyones = own.clone()
        dist.all_reduce(everyones)
        # … and then what the means of dy * x̂ and of dy over all pictures differ from the own ones.
        # That is little, and so is its rounding.
        by_x, by_one = (own / (x.numel() / x.shape[1]) - everyones / count).chunk(2)
        scale = weight * inverse
        dx += _affine(x, scale * inverse * by_x, scale * by_one, mean)
        # Each process's gradients of weight and bias are its own; DDP adds them up.
        return dx, d_weight, d_bias, None


def _affine(x, slope, offset, centre):
    """Return (x - centre) * slope + offset, with (C) float32 numbers and x of any precision.

    An inference's batch norm is that, in one pass and without a copy in float32.
    """
    return torch.batch_norm(
        x, slope, offset, centre, torch.ones_like(centre), False, 0.0, 0.0, False
    )


def _statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return float32 mean (C) and biased variance (C) over all processes, and the count (1).

    Each contributes its own, which Chan's formula joins: Chan, Golub & LeVeque 1983, equation 1.5.
    """
    channels = x.shape[1]
    # Given float32 buffers, it computes in float32 also where x is bfloat16.
    buffers = x.new_zeros(2, channels, dtype=torch.float32)
    mean, variance = torch.batch_norm_update_stats(x, *buffers, 1.0)
    count = mean.new_full((1,), x.numel() / channels)
    own = torch.cat([mean, variance, count])
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, own)
    means, variances, counts = torch.stack(everyone).split([channels, channels, 1], dim=1)
    shares = counts / counts.sum()
    mean = (shares * means).sum(0)
    variance = (shares * (variances + (means - mean).square())).sum(0)
    return mean, variance, counts.sum().view(1)
