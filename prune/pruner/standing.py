"""Where a group stands, in words."""

from __future__ import annotations

from trisparse.prune.config.schedules import sparsity_at
from trisparse.prune.pruner.group import PrunedGroup


def standing(group: PrunedGroup, step: int) -> str:
    """By the schedule alone: nothing is read from a device or asked of other processes."""
    c, count = group.config, len(group.layers)
    what = f"{c.pattern} of {count} layer{'s' if count > 1 else ''}"
    if c.is_lock:
        return f"{what}, locked"
    start, _, frequency = c.window
    event = min((step - start) // frequency, c.last_event)  # -1 or less before the first
    if c.target_sparsity is None:
        aim = f"to {c.goal}"
    else:
        now = sparsity_at(c.sparsity_decay_type, c.target, event, c.last_event) if event >= 0 else 0.0
        aim = f"at {now:.4g} of {c.target:.4g}"
    if event == c.last_event:
        return f"{what} {aim}, complete since step {start + event * frequency}"
    coming, last = (start + number * frequency for number in (max(event + 1, 0), c.last_event))
    return f"{what} {aim}, next event at step {coming}, the last at {last}"
