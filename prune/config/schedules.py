"""Schedules: which fraction of the weights is gone after event p of P. Pure functions of the step."""

import math
from collections.abc import Callable

Schedule = Callable[[float, float], float]  # of the target and the progress, 0 to 1


def _linear(t: float, x: float) -> float:
    return t * x


def _cos(t: float, x: float) -> float:
    return t * (1 - math.cos(math.pi * x / 2))


def _cube(t: float, x: float) -> float:
    return t * x**3


def _exp(t: float, x: float) -> float:
    return 1 - (1 - t) ** x


def _cubic(t: float, x: float) -> float:
    return t * (1 - (1 - x) ** 3)  # Zhu and Gupta, arXiv 1710.01878


SCHEDULES: dict[str, Schedule] = {
    "linear": _linear,
    "cos": _cos,
    "cube": _cube,
    "exp": _exp,
    "cubic": _cubic,
}


def last_event(start: int, end: int, frequency: int) -> int:
    """Index P of the last event; event j falls on step `start + j * frequency`."""
    return (end - start + frequency) // frequency - 1


def event_at(step: int, start: int, end: int, frequency: int) -> int | None:
    """Index of the event that falls on this step, or None."""
    if not start <= step <= end or (step - start) % frequency:
        return None
    return (step - start) // frequency


def sparsity_at(schedule: str | Schedule, target: float, event: int, last: int) -> float:
    """Fraction of weights that are zero after this event; exactly `target` after the last."""
    if event >= last:
        return target
    at = SCHEDULES[schedule] if isinstance(schedule, str) else schedule
    return at(target, event / last)
