"""Where a GLUE run stands: gathered for a checkpoint, and put back."""

from __future__ import annotations

from typing import Any

from trisparse.prune.glue.output import read_checkpoint
from trisparse.prune.glue.ranks import (
    load_model_state,
    load_optimizer_state,
    model_state,
    optimizer_state,
    random_states,
    set_random_state,
)
from trisparse.prune.glue.setup import Setup


def states(s: Setup, scheduler: Any) -> dict[str, Any]:
    """The state of each part of the run, whole; all processes make this call."""
    found = {
        "model": model_state(s.model),
        "optimizer": optimizer_state(s.model, s.optimizer),
        "scheduler": scheduler.state_dict(),
    }
    if s.pruner is not None:
        found["pruner"] = s.pruner.state_dict()
    if s.accelerator.scaler is not None:
        found["scaler"] = s.accelerator.scaler.state_dict()
    return found


def whole_state(s: Setup, parts: dict[str, Any], progress: dict[str, Any]) -> dict[str, Any]:
    """What checkpoint.pt holds: parts, arguments, what must not change, progress, random state of all processes."""
    return {
        **_fixed(s),
        "args": s.args.to_dict(),
        "progress": progress,
        "random": random_states(),
        "parts": parts,
    }


def resume(s: Setup, scheduler: Any) -> dict[str, Any]:
    """Put all parts and the random generators back where --resume_from_checkpoint left them; returns the progress.

    Raises:
        PruningError: the checkpoint is damaged, or of another run.
    """
    names = {"model", "optimizer", "scheduler"}
    names |= {"pruner"} if s.pruner is not None else set()
    names |= {"scaler"} if s.accelerator.scaler is not None else set()
    state = read_checkpoint(s.args, _fixed(s), names, s.plan.total_steps)
    parts = state["parts"]
    load_model_state(s.model, parts["model"])
    load_optimizer_state(s.model, s.optimizer, parts["optimizer"])
    scheduler.load_state_dict(parts["scheduler"])
    if s.pruner is not None:
        s.pruner.load_state_dict(parts["pruner"])
    if s.accelerator.scaler is not None:
        s.accelerator.scaler.load_state_dict(parts["scaler"])
    set_random_state(s.accelerator, state["random"])
    return state["progress"]


def _fixed(s: Setup) -> dict[str, Any]:
    d, t = s.args.data, s.args.training
    examples = d.per_device_train_batch_size * t.gradient_accumulation_steps * s.accelerator.num_processes
    return {"data": s.data, "examples_per_step": examples}
