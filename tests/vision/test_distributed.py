"""A batch norm over two processes, against the one over all pictures at once."""

import os
import socket

import torch
import torch.multiprocessing as mp
from torch import nn

from vision.distributed import Group

SHARES = (7, 3)


class Activated(nn.BatchNorm2d):
    """A batch norm with what timm's carries: a dropout and the activation after it."""

    drop, act = nn.Identity(), nn.ReLU()

    def forward(self, x):
        return self.act(super().forward(x))


def case():
    torch.manual_seed(1)
    X, weights = torch.randn(2, sum(SHARES), 4, 5, 5)
    norm = Activated(4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return 3 * X + 2, weights, norm


def one_of_two(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank)}
    group = Group.join()
    X, weights, norm = case()
    model = group.parallel(norm, torch.device("cpu"))
    mine = X.split(SHARES)[rank].clone().requires_grad_()
    y = model(mine)
    # As in a training: the mean that DDP takes becomes a sum.
    ((y * weights.split(SHARES)[rank]).sum() * group.size).backward()
    found = {"y": y.detach(), "dx": mine.grad, "norm": norm.state_dict()}
    found |= {"d_weight": norm.weight.grad, "d_bias": norm.bias.grad}
    torch.save(found, f"{folder}/{rank}.pt")
    group.leave()


def test_two_processes_normalise_as_one_does(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    mp.spawn(one_of_two, args=(port, tmp_path), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]

    X, weights, norm = case()
    X.requires_grad_()
    expected = norm(X)
    (expected * weights).sum().backward()
    both = {key: torch.cat([part[key] for part in parts]) for key in ("y", "dx")}
    assert torch.allclose(both["y"], expected, atol=1e-5)
    assert torch.allclose(both["dx"], 2 * X.grad, atol=1e-5)
    for part in parts:
        assert torch.allclose(part["d_weight"], norm.weight.grad, atol=1e-4)
        assert torch.allclose(part["d_bias"], norm.bias.grad, atol=1e-4)
        for key, value in norm.state_dict().items():
            assert torch.allclose(part["norm"][key].float(), value.float(), atol=1e-5), key


def test_alone_a_model_stays_as_it_is():
    norm = nn.BatchNorm2d(4)
    assert Group().parallel(norm, torch.device("cpu")) is norm
    assert "forward" not in vars(norm)
