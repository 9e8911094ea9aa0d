"""How much faster one model is than another, on this machine."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

_WARM_UP = 3  # rounds


@torch.inference_mode()
def times_faster(before: nn.Module, after: nn.Module, example: Mapping[str, Any], rounds: int = 30) -> float:
    """Median over rounds of the time of `before` over that of `after`; both run in every round, in turns.

    Args:
        before: in evaluation mode, like `after`.
        after: on the same device.
        example: keywords of their forward.
        rounds: how many, after three to warm up.
    """
    device = next(before.parameters()).device
    return ratio_in_turns(lambda: before(**example), lambda: after(**example), device, rounds)


def ratio_in_turns(
    before: Callable[[], object], after: Callable[[], object], device: torch.device, rounds: int,
    seconds: float = math.inf,
) -> float:  # fmt: skip
    """`times_faster` for two calls.

    In its turn a call is made twice, and the second counts: it finds the caches as its own first run left them.

    Args:
        before: what the time of `after` is compared with.
        after: a call of the same device.
        device: that is waited for, if it is a GPU.
        rounds: how many, after three to warm up.
        seconds: after which no round begins, if there were three.
    """
    ratios: list[float] = []
    begin_all = time.perf_counter()
    while len(ratios) < rounds + _WARM_UP:
        pair = (before, after) if len(ratios) % 2 else (after, before)  # neither always comes second
        took = {}
        for call in (call for call in pair for _ in range(2)):
            begin = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            took[id(call)] = time.perf_counter() - begin
        ratios.append(took[id(before)] / took[id(after)])
        if len(ratios) >= 2 * _WARM_UP and time.perf_counter() - begin_all > seconds:
            break
    return statistics.median(ratios[_WARM_UP:])
