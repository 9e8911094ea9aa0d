"""Pictures of a pruned model and of a run, where matplotlib is installed."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from trisparse.prune.plot_style import COLOR, WIDTH, dense_line, has_matplotlib, pattern_look, plain_log, save, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DASHES = ("-", "--", ":", "-.")
_MODELS = (("ink", "o-"), ("ink", "s--"), ("dense", "v:"))  # small, fast, and dense against itself


class Bar(NamedTuple):
    """Layers that are shown as one: those of a pattern, or of a name but for its numbers, if all of them are equal."""

    label: str
    pattern: str
    value: Any


def grouped(rows: Sequence[tuple[str, str, Hashable]]) -> list[Bar]:
    """Name, pattern and value of each layer, in order, as bars; a value that others share alone hides no name."""
    prefix = common_prefix([name for name, _, _ in rows])
    named = [(name.removeprefix(prefix), pattern, value) for name, pattern, value in rows]
    kinds: dict[tuple[str, str], list[Hashable]] = {}
    for name, pattern, value in named:
        for kind in _kinds(name, pattern):
            kinds.setdefault(kind, []).append(value)
    bars: dict[tuple[str, str], Bar] = {}
    for name, pattern, value in named:
        equal = [kind for kind in _kinds(name, pattern) if len(kinds[kind]) > 1 and len(set(kinds[kind])) == 1]
        pattern_or_name, _ = key = equal[0] if equal else (name, pattern)
        bars[key] = Bar(f"{pattern_or_name} x{len(kinds[key])}" if equal else name, pattern, value)
    return list(bars.values())


def _kinds(name: str, pattern: str) -> tuple[tuple[str, str], tuple[str, str]]:
    return (pattern, ""), (re.sub(r"\d+", "*", name), pattern)


def common_prefix(names: Sequence[str]) -> str:
    """What all names begin with, up to a dot."""
    prefix = ""
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        prefix += f"{parts[0]}."
    return prefix


def bars_height(bars: Sequence[Bar]) -> float:
    """Inches that `draw_sparsity` needs."""
    return 1.2 + 0.19 * len(bars)


def draw_sparsity(axes: Axes, bars: Sequence[Bar], level: float, word: str) -> None:
    """Zeros of layers as horizontal bars in the colours of their patterns, and a line behind them: `word`, `level`."""
    axes.axvline(level, color=COLOR["soft"], linewidth=1, linestyle="--", zorder=1)
    _remark(axes, f"dashed: {word} {level:.4g}", "right")
    for pattern in dict.fromkeys(bar.pattern for bar in bars):
        own = [(place, bar.value) for place, bar in enumerate(bars) if bar.pattern == pattern]
        axes.barh(
            [place for place, _ in own], [value for _, value in own], height=0.72, zorder=2, label=pattern,
            color=pattern_look(pattern)["color"],
        )  # fmt: skip
    for place, bar in enumerate(bars):  # beside the longest bar that can be, where no line runs
        axes.text(1.015, place, f"{bar.value:.3f}", va="center", fontsize=7.5, color=COLOR["soft"])
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars], fontsize=7.5)
    axes.set(xlim=(0, 1.11), xlabel="share of the weights that is zero", ylim=(len(bars) - 0.4, -0.6))
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    axes.grid(visible=False, axis="y")
    if len({bar.pattern for bar in bars}) > 1:
        axes.figure.legend(loc="outside lower center", ncols=4)


def plot_sparsity(layers: Sequence[tuple[str, str, float]], total: float, path: Path) -> None:
    """Zeros of each pruned layer, equal ones as one bar: name, pattern and sparsity of each, and that of all."""
    if not has_matplotlib():
        return
    bars = grouped([(name, pattern, round(sparsity, 3)) for name, pattern, sparsity in layers])
    with styled(WIDTH, bars_height(bars) + 0.3) as figure:
        axes = figure.subplots()
        draw_sparsity(axes, bars, total, "all of them")
        if prefix := common_prefix([name for name, _, _ in layers]):
            _remark(axes, f"names within {prefix.rstrip('.')}", "left")
        count = f"{len(layers)} pruned layer{'s' if len(layers) > 1 else ''}"
        patterns = ", ".join(dict.fromkeys(bar.pattern for bar in bars))
        figure.suptitle(f"Sparsity of {count}: {patterns}")
        save(figure, path)


def courses(steps: Sequence[dict[str, Any]], evals: Sequence[dict[str, Any]]) -> dict[str, tuple[list, list]]:
    """What a history holds, panel by panel: optimizer steps, and values there.

    Args:
        steps: rows with `step`, `loss`, `sparsity` and, since there is one, `steps_per_second`.
        evals: rows with `step`, `epoch` and every metric.
    """
    logged = [row["step"] for row in steps]
    found = {"training loss": (logged, [row["loss"] for row in steps])}
    for metric in [key for key in (evals[0] if evals else ()) if key not in ("step", "epoch")]:
        found[metric] = ([row["step"] for row in evals], [row[metric] for row in evals])
    if any(row["sparsity"] > 1e-5 for row in steps):  # a dense model may hold a zero too
        found["sparsity"] = (logged, [row["sparsity"] for row in steps])
    if all("steps_per_second" in row for row in steps):
        found["steps a second"] = (logged, [row["steps_per_second"] for row in steps])
    return found


def draw_course(
    axes: Axes, title: str, lines: Sequence[tuple[Sequence[int], Sequence[float], dict[str, Any]]], level: float | None
) -> None:
    """A panel of `courses`: steps, values and looks of every line; `level`: the teacher's, or the target sparsity."""
    for steps, values, look in lines:
        axes.plot(steps, values, **{**look, "marker": look["marker"] if len(values) < 20 else ""}, clip_on=False)
    if level is not None:
        is_target = title == "sparsity"
        if is_target:
            axes.axhline(level, color=COLOR["soft"], linewidth=1, linestyle="--", zorder=1)
        else:
            dense_line(axes, level)
        _remark(axes, f"dashed: {'target' if is_target else 'teacher'} {level:.4g}", "right")
    axes.set_title(title)
    axes.set_xlim(0, max(1, *(steps[-1] for steps, _, _ in lines)))
    if title == "sparsity":
        axes.set_ylim(0, 1)
    elif title in ("training loss", "steps a second"):
        axes.set_ylim(0, 1.08 * max(max(values) for _, values, _ in lines) or 1)
    else:
        axes.margins(y=0.15)


def _remark(axes: Axes, text: str, side: Literal["left", "right"]) -> None:
    """Above a panel, where it hides nothing."""
    axes.set_title(text, loc=side, fontsize=8.5, fontweight="normal", color=COLOR["soft"])


def plot_history(
    steps: Sequence[dict[str, Any]], evals: Sequence[dict[str, Any]], levels: Mapping[str, float], pattern: str,
    title: str, path: Path,
) -> None:  # fmt: skip
    """The panels of `courses` over optimizer steps; `levels`: the teacher's metrics, and the target as `sparsity`."""
    if not has_matplotlib() or not steps:
        return
    found = courses(steps, evals)
    with styled(WIDTH, 0.8 + 1.45 * len(found)) as figure:
        panels = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, (x, y)) in zip(panels, found.items(), strict=True):
            draw_course(axes, name, [(x, y, pattern_look(pattern))], levels.get(name))
        panels[-1].set(xlabel="optimizer step", xlim=(0, max(steps[-1]["step"], 1)))
        figure.align_ylabels()
        figure.suptitle(title)
        save(figure, path)


def plot_gains(
    counts: Sequence[int], layers: dict[tuple[str, str], list[float]], models: dict[str, list[float]], path: Path,
    unit: str = "tokens",
) -> None:  # fmt: skip
    """How many times as fast as dense over tokens or pictures: thin lines for layers, thick ones for models.

    `layers` are by pattern and shape.
    """
    if not has_matplotlib():
        return
    shapes = list(dict.fromkeys(shape for _, shape in layers))
    rows = (len(layers) + len(models) + 2) // 2
    gains = [gain for found in (*layers.values(), *models.values()) for gain in found]
    with styled(WIDTH, 3.8 + 0.19 * rows) as figure:
        axes = figure.subplots()
        dense_line(axes, 1)
        for (pattern, shape), found in layers.items():
            dashes = _DASHES[shapes.index(shape) % len(_DASHES)]
            axes.plot(
                counts, found, **pattern_look(pattern), linestyle=dashes, linewidth=1, label=f"{pattern}, {shape}"
            )
        for (name, found), (color, style) in zip(models.items(), _MODELS, strict=True):
            axes.plot(counts, found, style, color=COLOR[color], linewidth=2.2, markersize=6, label=name)
        plain_log(axes.xaxis, sorted(set(counts)))
        plain_log(axes.yaxis, low=min(1, *gains), high=max(1, *gains))
        axes.set(xlabel=f"{unit} in a batch", ylabel="times as fast as dense")
        figure.suptitle("Compressed against dense: " + ("layers, and the whole model" if layers else "the whole model"))
        figure.legend(loc="outside lower center", ncols=2)
        save(figure, path)
