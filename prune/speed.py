"""How much faster one model is than another, on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


@torch.inference_mode()
def times_faster(before: nn.Module, after: nn.Module, example: Mapping[str, Any], rounds: int = 30) -> float:
    """Median over rounds of the time of `before` over that of `after`; both run in every round, in turns.

    In its turn a model runs twice, and its second run counts: it finds the caches as its own first run left them.

    Args:
        before: in evaluation mode, like `after`.
        after: on the same device.
        example: keywords of their forward.
        rounds: how many, after three to warm up.
    """
    device = next(before.parameters()).device
    ratios = []
    for index in range(rounds + 3):
        pair = (before, after) if index % 2 else (after, before)  # neither always comes second
        seconds = {}
        for model in (model for model in pair for _ in range(2)):
            begin = time.perf_counter()
            model(**example)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[id(model)] = time.perf_counter() - begin
        ratios.append(seconds[id(before)] / seconds[id(after)])
    return statistics.median(ratios[3:])
