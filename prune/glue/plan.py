"""How many steps a run has, and at which of them pruning starts and ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from trisparse.prune.errors import PruningError
from trisparse.prune.glue.args import GlueArguments

_EVENTS = 40  # about as many events as the default frequency makes


@dataclass(frozen=True)
class Plan:
    """Optimizer steps of a run. The window is None for a dense run."""

    steps_per_epoch: int
    total_steps: int
    epochs: float
    window: dict[str, int] | None

    def __str__(self) -> str:
        return ", ".join(f"{key} {value:g}" for key, value in self.to_dict().items())

    def to_dict(self) -> dict[str, Any]:
        return {
            "steps_per_epoch": self.steps_per_epoch,
            "total_steps": self.total_steps,
            "epochs": self.epochs,
            **(self.window or {}),
        }


def make_plan(args: GlueArguments, batches: int) -> Plan:
    """Resolve epochs to steps; `batches` is the length of the training loader.

    With S = ceil(batches / accumulation): start = max(1, round(warm * S)), end = min(round((epochs -
    cooldown) * S), total), frequency -1 = max(1, (end - start + 1) // 40).

    Raises:
        PruningError: pruning would start after it ends.
    """
    t, p = args.training, args.pruning
    per_epoch = math.ceil(batches / t.gradient_accumulation_steps)
    epochs = t.num_train_epochs
    if epochs is None:
        epochs = t.max_train_steps / per_epoch if t.max_train_steps else 3.0
    total = t.max_train_steps or max(1, round(epochs * per_epoch))
    if not p.do_prune:
        return Plan(per_epoch, total, epochs, None)
    warm, cool = p.sparsity_warm_epochs or 0.0, p.cooldown_epochs or 0.0
    start = max(1, round(warm * per_epoch))
    end = min(round((epochs - cool) * per_epoch), total)
    if start > end:
        raise PruningError(
            f"--sparsity_warm_epochs {warm:g}, --cooldown_epochs {cool:g}: pruning would start at step {start} and end "
            f"at {end}, of {per_epoch} steps an epoch; with these, --num_train_epochs must be at least "
            f"{cool + start / per_epoch:.4g}" + (f", and --max_train_steps {start}" if t.max_train_steps else "")
        )
    frequency = p.pruning_frequency or -1
    if frequency == -1:
        frequency = max(1, (end - start + 1) // _EVENTS)
    return Plan(per_epoch, total, epochs, {"start_step": start, "end_step": end, "pruning_frequency": frequency})
