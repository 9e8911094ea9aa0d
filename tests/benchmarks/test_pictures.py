"""Pictures of benchmarks, from the results that are committed: what they show, read off their artists."""

import json
from pathlib import Path

import pytest

from trisparse.prune.plot_style import COLOR

pytest.importorskip("matplotlib")
ROOT = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def drawn(load, monkeypatch):
    """Run a script with --draw on committed results; its figure."""

    def draw(script, results):
        module, figures = load(script), []
        monkeypatch.setattr(module, "save", lambda figure, path: figures.append((figure, path)))
        monkeypatch.setattr("sys.argv", [script, "--draw", "--out", str(ROOT / "results" / results)])
        module.main()
        ((figure, path),) = figures
        assert path == (ROOT / "results" / results).with_suffix(".png")
        assert path.exists(), "committed beside its JSON"
        figure.draw_without_rendering()
        return figure

    return draw


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def is_clear_of(legend, panels):
    """Whether a legend lies within its figure and on no panel."""
    box = legend.get_window_extent()
    inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= legend.get_figure().bbox.width
    return inside and not any(box.overlaps(axes.get_tightbbox()) for axes in panels)


@pytest.mark.parametrize(
    ("results", "shapes", "patterns"),
    [
        ("crossover_cpu.json", 2, ["1x1", "2x1", "4x1", "16x1", "16x16", "64x64", "2:4"]),
        (
            "NVIDIA-H200/crossover.json", 3,
            ["4x1", "8x1", "16x1", "32x1", "16x16", "32x32", "64x64", "128x128", "2:4"],
        ),
    ],
)  # fmt: skip
def test_crossover(drawn, results, shapes, patterns):
    figure = drawn("sparse_ops/blocks/crossover.py", results)
    rows = json.loads((ROOT / "results" / results).read_text())["rows"]
    assert len(figure.axes) == 5 * shapes
    first = figure.axes[0]
    assert [line.get_label() for line in first.lines] == ["dense", *patterns]
    assert list(first.lines[0].get_ydata()) == [1, 1]
    assert len({line.get_color() for line in first.lines}) == len(patterns) + 1
    (shape, count) = first.get_title(loc="left").split(", ")
    found = {(r["shape"], r["format"], r["sparsity"]): r["gain"] for r in rows if r["tokens"] == int(count.split()[0])}
    line = next(line for line in first.lines if line.get_label() == "4x1")
    assert line.get_ydata()[list(line.get_xdata().round(9)).index(0.1)] == found[shape, "4x1", 0.9]
    assert labels(figure.axes[-1].xaxis) == ["0.5", "0.7", "0.8", "0.9", "0.95", "0.98"]
    assert {"1", "2", "5"} <= set(labels(first.yaxis)), "no powers"
    assert is_clear_of(figure.legends[0], figure.axes)


def test_recipes_that_were_not_run_are_not_shown(drawn, load):
    figure = drawn("prune/glue/glue_recipes.py", "glue_recipes.json")
    runs = json.loads((ROOT / "results" / "glue_recipes.json").read_text())["runs"]
    (axes,) = figure.axes
    shown = labels(axes.yaxis)
    assert set(shown) == {run["row"] for run in runs}
    dense, published, *points = axes.lines
    assert (dense.get_label(), dense.get_color(), list(dense.get_xdata())) == ("dense", COLOR["dense"], [0, 0])
    numbers = load("prune/glue/glue_recipes.py").PUBLISHED
    those = [place for place, row in enumerate(shown) if numbers[row]]
    assert list(published.get_ydata()) == those, "of the rows that were run alone"
    assert published.get_xdata()[0] == pytest.approx(100 * (0.8722 / 0.8752 - 1))
    points = [line for line in points if len(line.get_xdata())]
    assert len(points) == len(runs)
    colors = {shown[line.get_ydata()[0]]: line.get_color() for line in points}
    assert colors["bert-mini-mrpc-2-4"] == COLOR["n-of-m"]
    assert colors["bert-mini-mrpc-4x1"] == COLOR["vectors-4"]
    assert colors["bert-mini-mrpc-1xchannel-0.9"] == COLOR["channels"]
    assert colors["bert-mini-mrpc-mixed"] == COLOR["ink"]
    assert is_clear_of(figure.legends[0], figure.axes)


def test_sparse_training(drawn):
    figure = drawn("prune/pruner/bench_sparse_training.py", "sparse_training_cpu.json")
    layers, steps = figure.axes
    assert [line.get_label() for line in layers.lines] == ["4x1", "1x1", "1xchannel", "dense"]
    labels = [
        f"{model}, {pattern}" for model in ("MiniLM-L6", "BERT-base, 4 layers") for pattern in ("4x1", "1xchannel")
    ]
    assert [line.get_label() for line in steps.lines] == [*labels, "dense"]
    colors = [line.get_color() for line in layers.lines]
    assert colors == [COLOR[name] for name in ("vectors-4", "weights", "channels", "dense")]
    assert [line.get_color() for line in steps.lines[:4]] == [COLOR["vectors-4"], COLOR["channels"]] * 2
    assert steps.lines[0].get_linestyle() == steps.lines[1].get_linestyle() != steps.lines[2].get_linestyle()
    assert all(list(axes.lines[-1].get_ydata()) == [1, 1] and axes.get_ylim()[0] == 0 for axes in figure.axes)


def test_budgets(load, monkeypatch, tmp_path):
    budgets, figures = load("prune/glue/budgets.py"), []
    monkeypatch.setattr(budgets, "save", lambda figure, path: figures.append(figure))
    kinds = [("budget", 2.0), ("budget", 1.5), ("even", 1.7), ("mixed", 1.4), ("mixed budget", 1.4)]
    rows = [{"kind": k, "measured": x, "eval": {"f1": 1 - x / 10}, "dense": {"f1": 0.9}} for k, x in kinds]
    budgets.plot(rows, tmp_path / "a.png")
    (axes,) = figures[0].axes
    level, dense, budget, even, mixed, mixed_budget = axes.lines
    assert (list(level.get_ydata()), level.get_color()) == ([0.9, 0.9], COLOR["dense"])
    assert (list(dense.get_xdata()), list(dense.get_ydata())) == ([1], [0.9])
    assert list(budget.get_xdata()) == [1.5, 2.0], "in their order"
    assert budget.get_color() == even.get_color() == COLOR["vectors-4"]
    assert mixed.get_color() == mixed_budget.get_color() == COLOR["ink"]
    assert len({(line.get_color(), line.get_marker()) for line in axes.lines[2:]}) == 4
    assert [text.get_text() for text in figures[0].legends[0].texts] == ["dense", *budgets.KINDS.values()]
