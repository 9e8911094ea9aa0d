"""Pictures of runs as SVG to put into a page; they hold no links, and pixels only as data.

Each is as wide as a phone's screen, so that its letters can be read there; a page sets them side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trisparse.prune.plot_style import COLOR, NARROW, pattern_look, styled, to_svg
from trisparse.prune.pruner.plots import bars_height, courses, draw_course, draw_sparsity, grouped
from trisparse.prune.run_report.folder import Run

_COLUMNS = 480  # of the heat map
_DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))


def looks(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """How each run's lines look: the colour of its pattern, and dashes by which runs of one pattern differ."""
    found: list[dict[str, Any]] = []
    for run in runs:
        look = pattern_look(run.results["pattern"])
        before = sum(other["color"] == look["color"] for other in found)
        found.append(look | {"linestyle": _DASHES[before % len(_DASHES)]})
    return found


def curves(runs: Sequence[Run]) -> list[str]:
    """Training loss, metrics, sparsity and speed over optimizer steps, a picture each, with every run that has them."""
    found = [(run, look, courses(run.steps, run.evals)) for run, look in zip(runs, looks(runs), strict=True)]
    windows = {run.window for run in runs}
    (window,) = windows if len(windows) == 1 else (None,)
    pictures = []
    for title in dict.fromkeys(title for _, _, panels in found for title in panels):
        lines = [(*panels[title], look) for _, look, panels in found if title in panels]
        with styled(NARROW, 2.1) as figure:
            axes = figure.subplots()
            draw_course(axes, title, lines, _level([run for run, _, panels in found if title in panels], title))
            axes.set(xlabel="optimizer step", xlim=(0, max(1, *(run.steps[-1]["step"] for run in runs))))
            for step in (window or ())[:2]:
                axes.axvline(step, color=COLOR["soft"], linewidth=0.9, linestyle=":")
            pictures.append(to_svg(figure))
    return pictures


def _level(runs: Sequence[Run], title: str) -> float | None:
    """The target sparsity or the teacher's metric, where it is one number for all runs that have it."""
    values = [run.target if title == "sparsity" else run.results["teacher_eval"].get(title) for run in runs]
    found = {value for value in values if isinstance(value, int | float)}
    return found.pop() if len(found) == 1 else None


def bars(run: Run) -> str:
    """Sparsity of the layers at the end; equal ones are one bar."""
    rows = grouped([(row["name"], row["pattern"], round(row["sparsity"], 3)) for row in run.layers or ()])
    with styled(NARROW, bars_height(rows)) as figure:
        if isinstance(run.target, int | float):
            draw_sparsity(figure.subplots(), rows, run.target, "target")
        else:
            draw_sparsity(figure.subplots(), rows, run.results["sparsity"]["pruned_layers"], "all of them")
        return to_svg(figure)


def heat_map(run: Run) -> str:
    """Sparsity of every layer over optimizer steps, the darker the more; layers of equal courses are one row."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    masks: dict[str, Any] = run.masks or {}
    last_step = max(run.steps[-1]["step"], masks["steps"][-1], 1)
    # a column of pixels shows the masks at the end of its steps
    ends = np.linspace(0, last_step, _COLUMNS + 1)[1:]
    places = np.searchsorted(masks["steps"], ends, side="right").clip(1) - 1
    shares = np.array(masks["pruned"]) / np.array(masks["weights"])
    patterns = {row["name"]: row["pattern"] for row in run.layers or ()}
    values = [tuple(share) for share in shares.round(3).T]
    rows = grouped(
        [(n, patterns.get(n, run.results["pattern"]), v) for n, v in zip(masks["layers"], values, strict=True)]
    )
    blue = to_rgb(COLOR["vectors-4"])
    shades = LinearSegmentedColormap.from_list("shades", [(*blue, 0.0), (*blue, 1.0)])  # shows on white and on dark
    with styled(NARROW, 1.2 + 0.17 * len(rows)) as figure:
        axes, key = figure.subplots(2, 1, height_ratios=[0.17 * len(rows), 0.1])
        pixels = np.array([row.value for row in rows])[:, places]
        axes.imshow(
            pixels, aspect="auto", interpolation="none", cmap=shades, vmin=0, vmax=1,
            extent=(0, last_step, len(rows) - 0.5, -0.5),
        )  # fmt: skip
        axes.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=7.5)
        axes.set(xlabel="optimizer step")
        key.imshow(np.linspace(0, 1, 100)[None], aspect="auto", cmap=shades, vmin=0, vmax=1, extent=(0, 1, 0, 1))
        key.set(yticks=[], xlabel="sparsity")
        for panel in (axes, key):
            panel.grid(visible=False)
            panel.spines[["left", "bottom"]].set_visible(False)
        return to_svg(figure)


def flips(run: Run) -> str:
    """Weights newly pruned between two looks at the masks."""
    with styled(NARROW, 2.1) as figure:
        axes = figure.subplots()
        edges = [0, *(row["step"] for row in run.steps)]
        color = pattern_look(run.results["pattern"])["color"]
        axes.stairs([row["flips"] for row in run.steps], edges, fill=True, color=color)
        axes.set(xlabel="optimizer step", title="weights newly pruned", xlim=(0, edges[-1]), ylim=(0, None))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        return to_svg(figure)
