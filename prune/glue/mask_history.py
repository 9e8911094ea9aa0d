"""How the masks of a run grew: pruned weights of every layer over its steps, in plain values."""

from __future__ import annotations

import itertools
from typing import Any

from trisparse.prune.pruner.pruner import Pruner

_MOST = 256  # rows; a row has a number for every layer


def begin_history(pruner: Pruner) -> dict[str, Any]:
    """A history that starts with the masks as they are.

    Returns:
        What checkpoints and JSON take: `layers`, their names; `weights`, how many each has; and row by row `steps`,
        the optimizer step, and `pruned`, how many weights of each layer the masks pruned by then.
    """
    pruned = pruner.pruned_weights()
    return {
        "layers": list(pruned),
        "weights": [layer.numel for layer in pruner.layers],
        "steps": [pruner.step_count],
        "pruned": [list(pruned.values())],
    }


def record_masks(history: dict[str, Any], pruner: Pruner) -> list[int]:
    """Add a row if the masks have changed since the last; of too many rows every second one goes.

    Waits for the device once a group of layers.

    Returns:
        Mask flips of each layer: its weights that were pruned since the last call. Masks let no weight come back, so
        counts tell, and no copy of the masks is kept.
    """
    found = pruner.pruned_weights()
    _leave_out(history, [name in found for name in history["layers"]])
    pruned = list(found.values())
    flips = [now - before for now, before in zip(pruned, history["pruned"][-1], strict=True)]
    if any(flips):
        history["steps"].append(pruner.step_count)
        history["pruned"].append(pruned)
        if len(history["steps"]) > _MOST:
            del history["steps"][1:-1:2], history["pruned"][1:-1:2]
    return flips


def _leave_out(history: dict[str, Any], stays: list[bool]) -> None:
    """Forget layers that the Pruner has left out, since no gradient reached them."""
    if not all(stays):
        for key in ("layers", "weights"):
            history[key] = list(itertools.compress(history[key], stays))
        history["pruned"] = [list(itertools.compress(row, stays)) for row in history["pruned"]]
