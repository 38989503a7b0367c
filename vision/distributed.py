"""One process or many: the same code, with sums that run over all of them.

torchrun tells each process its place in RANK, WORLD_SIZE and LOCAL_RANK. A process that was
started without it is rank 0 of 1, and every operation here returns at once.
"""

import os
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

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether any process has set it."""
        if self.size == 1:
            return list(flags)
        return (self.sum(torch.tensor(flags, dtype=torch.long)) > 0).tolist()

    def all_equal(self, text: str) -> bool:
        """Return whether every process has the same text, a hexadecimal digest."""
        if self.size == 1:
            return True
        mine = torch.tensor(list(bytes.fromhex(text)), dtype=torch.long)
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
        """Part from the other processes."""
        if self.size > 1:
            dist.destroy_process_group()


class _SumOverAll(torch.autograd.Function):
    """A sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.contiguous()
        dist.all_reduce(total)
        return total


def _batch_norm_over_all(norm: nn.modules.batchnorm._BatchNorm, x: torch.Tensor) -> torch.Tensor:
    """Normalise (N, C, …) by mean and variance over the pictures of all processes.

    PyTorch's SyncBatchNorm does this on GPUs only. Ioffe & Szegedy 2015, arXiv:1502.03167.
    """
    if not norm.training:
        return type(norm).forward(norm, x)
    dims = [0, *range(2, x.ndim)]
    values = x.float()
    own_count = values.new_tensor([values.numel() / values.shape[1]])
    sums = _SumOverAll.apply(torch.cat([values.sum(dims), own_count]))
    count = sums[-1].detach()
    shape = (1, -1, *[1] * (x.ndim - 2))
    centred = values - (sums[:-1] / count).view(shape)
    variance = _SumOverAll.apply(centred.square().sum(dims)) / count
    with torch.no_grad():
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(sums[:-1] / count, norm.momentum)
        # The running variance is the unbiased one, as PyTorch's own.
        norm.running_var.lerp_(variance * count / (count - 1), norm.momentum)
    scale = torch.rsqrt(variance + norm.eps) * norm.weight
    y = (centred * scale.view(shape) + norm.bias.view(shape)).to(x.dtype)
    # timm's batch norm carries the activation that follows it.
    return norm.act(norm.drop(y)) if hasattr(norm, "act") else y
