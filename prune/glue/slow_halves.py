"""Whether bf16 is slower than fp32 on this CPU, which has to be measured: few multiply it, and some only emulate it."""

from __future__ import annotations

import time

import torch
from torch import nn

_TOKENS, _WIDTH = 64, 256  # about half a millisecond in fp32
_ROUNDS, _SECONDS = 5, 0.05  # at least
_SLOWER = 1.25  # more than times here differ by themselves


def slow_halves(mixed_precision: str, device: torch.device) -> list[str]:
    """A note if --mixed_precision bf16 makes layers slower on this device, measured in some milliseconds; else none."""
    if mixed_precision != "bf16" or device.type != "cpu":
        return []
    factor = bf16_factor()
    if factor < _SLOWER:
        return []
    return [
        f"--mixed_precision bf16: a linear layer takes {factor:.1f} times as long in bf16 as in fp32 on this CPU, "
        "measured at the start; leave the flag out"
    ]


def bf16_factor() -> float:
    """How many times as long a training step of a linear layer takes under autocast to bf16.

    They run in turns, and the least time of each counts: what else the machine does only adds to them.
    """
    generator = torch.Generator().manual_seed(0)  # the run's own random numbers stay as they are
    weight = torch.randn(_WIDTH, _WIDTH, generator=generator, dtype=torch.float32, device="cpu").requires_grad_()
    x = torch.randn(_TOKENS, _WIDTH, generator=generator, dtype=torch.float32, device="cpu").requires_grad_()
    grad = torch.randn(_TOKENS, _WIDTH, generator=generator, dtype=torch.float32, device="cpu")
    times: dict[bool, list[float]] = {False: [], True: []}
    start = time.perf_counter()
    while len(times[True]) < _ROUNDS or time.perf_counter() - start < _SECONDS:
        for half, found in times.items():
            begin = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                y = nn.functional.linear(x, weight)
            torch.autograd.grad(y, (x, weight), grad.to(y.dtype))
            found.append(time.perf_counter() - begin)
    return min(times[True]) / min(times[False])
