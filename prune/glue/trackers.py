"""Where a run can be watched: TensorBoard or Weights & Biases, by accelerate's trackers."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from trisparse.prune.errors import PruningError
from trisparse.prune.glue.args import TRACKERS

_PROJECT = "trisparse"  # wandb's project, and the folder of TensorBoard's files in the run's own


def check_tracker(name: str) -> str | None:
    """What accelerate is to log with; None for `none`.

    Raises:
        PruningError: it is not installed.
    """
    packages, install = TRACKERS[name]
    if packages and not any(find_spec(package) for package in packages):
        raise PruningError(f"--report_to: {name} is not installed; pip install {install}")
    return name if packages else None


def start_trackers(accelerator: Accelerator, folder: Path, step: int) -> list[Path]:
    """Start what --report_to names, after this many optimizer steps.

    A resumed run goes on in the log of the run before; what that logged after the checkpoint is hidden.

    Returns:
        The log files of a run that is written over, to go when its other files go.
    """
    if not accelerator.log_with:
        return []
    earlier = [] if step else list((folder / _PROJECT).glob("events.out.tfevents.*"))
    accelerator.init_trackers(_PROJECT, init_kwargs={"tensorboard": {"purge_step": step + 1}})
    return earlier


def values_to_log(row: dict[str, Any], masks: dict[str, Any] | None, flips: Sequence[int]) -> dict[str, float]:
    """A row of the history by the names that trackers show it under; `masks` is None for a dense run."""
    values = {"train/loss": row["loss"], "train/steps_per_second": row["steps_per_second"]}
    if masks is None:
        return values
    values |= {"sparsity/total": row["sparsity"], "flips/total": row["flips"]}
    for name, weights, pruned, new in zip(masks["layers"], masks["weights"], masks["pruned"][-1], flips, strict=True):
        values |= {f"sparsity/{name}": pruned / weights, f"flips/{name}": new}
    return values
