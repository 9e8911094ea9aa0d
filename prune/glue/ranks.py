"""A GLUE run on several processes: weights that are spread, and states that are whole whoever holds them."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from trisparse.prune.layers.shards import local, reshard

# of the whole model, on the CPU of rank 0 where weights are sharded; frozen parts of it, too
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def shard(model: Any, device: torch.device) -> nn.Module:
    """Spread the weights over all processes by FSDP2: each layer of the encoder is gathered only while it computes."""
    from torch.distributed.fsdp import fully_shard

    # it warns of outputs that are views, in case someone writes to them; nobody does here
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    model.to(device)
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList):
            for layer in module:
                fully_shard(layer)
    return fully_shard(model)


def model_state(model: nn.Module) -> dict[str, Any]:
    """All weights by their names in the bare model; all processes make this call, rank 0 gets them."""
    reshard(model)
    return get_model_state_dict(model, options=_WHOLE)


def optimizer_state(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """The optimizer's state by names of parameters, so that any number of processes can load it; as `model_state`."""
    return get_optimizer_state_dict(model, optimizer.optimizer, options=_WHOLE)


def load_model_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Go back to a `model_state`."""
    set_model_state_dict(model, state, options=_WHOLE)


def load_optimizer_state(model: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
    """Go back to an `optimizer_state`."""
    # not strict: a parameter that never had a gradient has no state
    options = dataclasses.replace(_WHOLE, strict=False)
    set_optimizer_state_dict(model, optimizer.optimizer, state, options=options)


def random_states() -> list[dict[str, Any]]:
    """Of each process, what dropout draws from; the batches depend on seed and epoch alone."""
    state: dict[str, Any] = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return gather_object([state])


def set_random_state(accelerator: Accelerator, states: list[dict[str, Any]]) -> None:
    """Go back to `random_states()`, if there are as many processes as there were."""
    if len(states) != accelerator.num_processes:
        return
    state = states[accelerator.process_index]
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def is_finite(accelerator: Accelerator, model: nn.Module) -> bool:
    """Whether all weights are numbers, on all processes."""
    broken = torch.stack([~local(p.detach()).isfinite().all() for p in model.parameters()]).any()
    return not accelerator.reduce(broken.to(torch.int64), "sum")
