"""Pictures of a run, where matplotlib is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trisparse.prune.files import atomic_save

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _figure(width: float, height: float) -> Figure | None:
    if importlib.util.find_spec("matplotlib") is None:
        return None
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    atomic_save(path, lambda temporary: figure.savefig(temporary, dpi=110))


def plot_sparsity(layers: Sequence[tuple[str, float]], total: float, path: Path) -> None:
    """Zeros of each pruned layer as horizontal bars: label and sparsity of each, and the sparsity of all of them."""
    figure = _figure(8, 1.2 + 0.22 * len(layers))
    if figure is None:
        return
    axes = figure.subplots()
    bars = axes.barh([label for label, _ in layers], [sparsity for _, sparsity in layers], color="#4477aa")
    axes.bar_label(bars, fmt="%.3f", padding=3, fontsize=7)
    axes.axvline(total, color="#cc3311", linewidth=1, label=f"all of them {total:.4f}")
    axes.set(xlim=(0, 1.1), xlabel="fraction of weights that are zero")
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()
    axes.legend(loc="lower right", fontsize=8)
    _save(figure, path)


def plot_history(steps: Sequence[dict[str, Any]], evals: Sequence[dict[str, Any]], metric: str, path: Path) -> None:
    """Loss, sparsity and evaluation metric over optimizer steps.

    `steps` have `step`, `loss`, `sparsity`; `evals` have `step` and the metric.
    """
    figure = _figure(8, 6)
    if figure is None or not steps:
        return
    top, bottom = figure.subplots(2, 1, sharex=True)
    x = [row["step"] for row in steps]
    top.plot(x, [row["loss"] for row in steps], color="#4477aa", linewidth=1)
    top.set_ylabel("training loss")
    bottom.plot(x, [row["sparsity"] for row in steps], color="#cc3311", label="sparsity")
    if evals:
        bottom.plot(
            [row["step"] for row in evals],
            [row[metric] for row in evals],
            "o-",
            color="#228833",
            label=metric,
        )
    bottom.set(xlabel="optimizer step", ylim=(-0.02, 1.02))
    bottom.legend(loc="lower right")
    _save(figure, path)


def plot_gains(
    tokens: Sequence[int], layers: dict[str, list[float]], models: dict[str, list[float]], path: Path
) -> None:
    """How many times faster than dense over tokens: thin lines for layers, thick ones for whole models."""
    figure = _figure(9, 5)
    if figure is None:
        return
    axes = figure.subplots()
    for name, gains in layers.items():
        axes.plot(tokens, gains, linewidth=0.8, alpha=0.6, label=name)
    for (name, gains), style in zip(models.items(), ("k-", "k--", "k:"), strict=True):
        axes.plot(tokens, gains, style, linewidth=2, label=name)
    axes.axhline(1, color="gray", linewidth=0.5)
    axes.set(xscale="log", yscale="log", xlabel="tokens in a batch", ylabel="times faster than dense")
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)
