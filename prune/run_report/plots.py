"""Pictures of a run as SVG to put into a page; they hold no links, and pixels only as data."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from trisparse.prune.run_report.folder import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE, _RED, _GREEN, _GRAY = "#2f5f8f", "#b5482f", "#3a7d44", "#8a8f98"
_WIDE = 9.2  # inches
_COLUMNS = 480  # of the heat map
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's own font
    "svg.hashsalt": "trisparse",  # the same run gives the same bytes
    "text.parse_math": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GRAY,
    "axes.labelcolor": "#3c4043",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8eb",
    "xtick.color": "#3c4043",
    "ytick.color": "#3c4043",
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
}


def curves(run: Run) -> str:
    """Training loss, sparsity and evaluation metrics over optimizer steps."""
    from matplotlib import rc_context

    results, x = run.results, [row["step"] for row in run.steps]
    with rc_context(_STYLE):
        figure = _figure(6.0 if run.layers else 4.2)
        axes = list(figure.subplots(3 if run.layers else 2, 1, sharex=True))
        losses = [row["loss"] for row in run.steps]
        axes[0].plot(x, losses, color=_BLUE, linewidth=1.3, marker="." if len(x) < 2 else "")
        axes[0].set(ylabel="training loss", ylim=(0, 1.08 * max(losses) or 1))
        if run.layers:
            axes[1].plot(x, [row["sparsity"] for row in run.steps], color=_RED, linewidth=1.3)
            if isinstance(run.target, int | float):
                axes[1].axhline(run.target, color=_GRAY, linewidth=0.9, linestyle="--")
            axes[1].set(ylabel="sparsity", ylim=(0, 1.03))
            if all("steps_per_second" in row for row in run.steps):  # older runs have none
                rates = [row["steps_per_second"] for row in run.steps]
                beside = axes[1].twinx()
                beside.plot(x, rates, color=_GRAY, linewidth=1)
                beside.set(ylabel="steps a second", ylim=(0, 1.15 * max(rates) or 1))
                beside.grid(visible=False)
        for metric, color in zip(results["eval"], (_GREEN, _BLUE, _RED, _GRAY), strict=False):
            values = [row[metric] for row in run.evals]
            axes[-1].plot(
                [row["step"] for row in run.evals], values, "o-", color=color, markersize=3.5, linewidth=1.3,
                label=metric, clip_on=False,
            )  # fmt: skip
            if results["teacher_eval"]:
                axes[-1].axhline(results["teacher_eval"][metric], color=color, linewidth=0.9, linestyle="--")
        axes[-1].set(ylabel="evaluation", xlabel="optimizer step", xlim=(0, max(x[-1], 1)))
        axes[-1].legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=4)
        for step in (run.window or ())[:2]:
            for panel in axes:
                panel.axvline(step, color=_GRAY, linewidth=0.8, linestyle=":")
        figure.align_ylabels()
        return _svg(figure)


def heat_map(masks: dict[str, Any], last_step: int, prefix: str) -> str:
    """Sparsity of every layer over optimizer steps; names are shown without `prefix`."""
    from matplotlib import rc_context

    weights, names = np.array(masks["weights"]), [name.removeprefix(prefix) for name in masks["layers"]]
    last_step = max(last_step, masks["steps"][-1], 1)
    # a column of pixels shows the masks at the end of its steps
    ends = np.linspace(0, last_step, _COLUMNS + 1)[1:]
    rows = np.searchsorted(masks["steps"], ends, side="right").clip(1) - 1
    with rc_context({**_STYLE, "axes.grid": False}):
        figure = _figure(1.0 + 0.17 * len(names))
        axes = figure.subplots()
        image = axes.imshow(
            (np.array(masks["pruned"])[rows] / weights).T, aspect="auto", interpolation="none", cmap="YlGnBu",
            vmin=0, vmax=1, extent=(0, last_step, len(names) - 0.5, -0.5),
        )  # fmt: skip
        axes.set_yticks(range(len(names)), names, fontsize=7.5)
        axes.set(xlabel="optimizer step")
        bar = figure.colorbar(image, ax=axes, pad=0.015, fraction=0.03, aspect=max(8.0, 1.2 * len(names)))
        bar.set_label("sparsity")
        bar.outline.set_visible(False)
        return _svg(figure)


def flips(run: Run) -> str:
    """Weights newly pruned between two looks at the masks."""
    from matplotlib import rc_context

    with rc_context(_STYLE):
        figure = _figure(2.2)
        axes = figure.subplots()
        edges = [0, *(row["step"] for row in run.steps)]
        axes.stairs([row["flips"] for row in run.steps], edges, fill=True, color=_RED, alpha=0.75)
        axes.set(xlabel="optimizer step", ylabel="newly pruned", xlim=(0, edges[-1]), ylim=(0, None))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        return _svg(figure)


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDE, height), layout="constrained")


def _svg(figure: Figure) -> str:
    """The `<svg>` element, without the XML header and metadata, which name addresses."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
