"""A model whose weights, gradients and optimizer state are spread over the ranks: FSDP2, `fully_shard` of PyTorch.

Each rank keeps a part of every tensor. The weights of a block are gathered when it computes, and freed afterwards.
Decided here:

* The blocks of the prior's transformer are units of their own. Everything else is one unit, gathered for the step.
* The model is built and loaded whole before it is spread, and so is the optimizer of a run that resumes. To evaluate,
  every rank gathers the weights. So these must fit on one device; their gradients and activations need not.
* Checkpoints are the same as those of one rank. A run may resume with another number of ranks, or without sharding.
* FSDP2 is imported only where it is used, because that takes almost a second. Elsewhere its tensors and modules are
  recognized by their methods.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from worldmodel.models.transformer import Block
from worldmodel.utils.ranks import n_ranks, rank


def shard(step_loss: nn.Module) -> None:
    """Spread a module over the ranks, in place; its parameters become `DTensor`."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # no view is changed in place
    mesh = init_device_mesh(next(step_loss.parameters()).device.type, (n_ranks(),))
    for block in step_loss.modules():
        if isinstance(block, Block):
            fully_shard(block, mesh=mesh)
            register_fsdp_forward_method(block, "context")
    fully_shard(step_loss, mesh=mesh)


def is_spread(module: object) -> bool:
    """Whether `shard` has spread a module, or made a unit of it."""
    return hasattr(module, "unshard")


def whole(tensor: Any) -> Tensor:
    """A tensor with the parts of all ranks, which all have to call this; others are returned as they are."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def whole_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`whole` of each tensor, on the first rank; the others take part and keep nothing."""
    found = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if not rank():
            found[name] = full.cpu() if full is not tensor else full
    return found


def shard_moments(optimizer: torch.optim.Optimizer) -> None:
    """Spread an optimizer's moments like their parameters, in place. Every rank has all of them."""
    if n_ranks() == 1:
        return
    from torch.distributed.tensor import DTensor, distribute_tensor

    for parameter, moments in optimizer.state.items():
        if isinstance(parameter, DTensor):
            mesh, placements = parameter.device_mesh, parameter.placements
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name] = distribute_tensor(moments[name], mesh, placements, src_data_rank=None)


@contextmanager
def whole_weights(step_loss: Any) -> Iterator[None]:
    """Context in which every rank has all weights, so that one rank can compute alone. All ranks have to enter it."""
    units = [module for module in step_loss.modules() if is_spread(module)] if is_spread(step_loss) else []
    for unit in units:
        unit.unshard()
        unit.set_reshard_after_forward(False, recurse=False)
    yield
    for unit in units:
        unit.set_reshard_after_forward(unit is not step_loss, recurse=False)
        unit.reshard()
