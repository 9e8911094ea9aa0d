"""What pictures of a model and of a run show, read off their artists."""

import pytest

from trisparse.prune.plot_style import COLOR
from trisparse.prune.pruner import plots

pytest.importorskip("matplotlib")


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved, in order."""
    found = []
    monkeypatch.setattr(plots, "save", lambda figure, path: found.append(figure))
    return found


def names(*kinds):
    return [f"bert.layer.{i}.{kind}" for i in range(3) for kind in kinds]


def test_equal_layers_of_a_pattern_are_one_bar():
    rows = [(name, "2:4", 0.5) for name in names("query", "key")]
    assert plots.grouped(rows) == [("2:4 x6", "2:4", 0.5)]
    mixed = [*rows, ("bert.pooler", "1x1", 0.9)]
    assert plots.grouped(mixed) == [("2:4 x6", "2:4", 0.5), ("pooler", "1x1", 0.9)]


def test_equal_layers_of_a_name_are_one_bar_and_a_chance_meeting_hides_no_name():
    values = {"query": (0.5, 0.5, 0.5), "key": (0.5, 0.6, 0.5)}
    rows = [(f"bert.layer.{i}.{kind}", "4x1", values[kind][i]) for i in range(3) for kind in ("query", "key")]
    assert plots.grouped(rows) == [
        ("*.query x3", "4x1", 0.5), ("0.key", "4x1", 0.5), ("1.key", "4x1", 0.6), ("2.key", "4x1", 0.5),
    ]  # fmt: skip


def test_layers_without_a_common_name():
    assert plots.grouped([("a", "4x1", 0.1)]) == [("a", "4x1", 0.1)]
    assert plots.grouped([("0", "4x1", 0.1), ("1", "4x1", 0.2)]) == [("0", "4x1", 0.1), ("1", "4x1", 0.2)]
    assert plots.grouped([("2", "4x1", 0.1), ("2", "2:4", 0.1)])[1].pattern == "2:4", "one of two groups"


def test_sparsity(figures, tmp_path):
    rows = [(name, "2:4", 0.5) for name in names("query", "key")]
    plots.plot_sparsity([*rows, ("bert.a", "4x1", 0.90004), ("bert.b", "4x1", 0.80004)], 0.55, tmp_path / "a.png")
    (figure,) = figures
    (axes,) = figure.axes
    assert figure.get_suptitle() == "Sparsity of 8 pruned layers: 2:4, 4x1"
    assert axes.get_xlabel() == "share of the weights that is zero"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["2:4 x6", "a", "b"]
    bars = [bar for drawn in axes.containers for bar in drawn]
    assert [bar.get_width() for bar in bars] == [0.5, 0.9, 0.8]
    assert [text.get_text() for text in axes.texts] == ["0.500", "0.900", "0.800"]
    (line,) = axes.lines
    assert list(line.get_xdata()) == [0.55, 0.55]
    assert line.get_zorder() < min(bar.get_zorder() for bar in bars), "behind the bars"
    assert axes.get_title(loc="right") == "dashed: all of them 0.55"
    assert [text.get_text() for text in figure.legends[0].texts] == ["2:4", "4x1"]


STEPS = [{"step": s, "loss": 1 / s, "sparsity": s / 50, "steps_per_second": 2.5} for s in (10, 20, 40)]
EVALS = [{"step": s, "epoch": s // 20, "accuracy": 0.7, "f1": 0.8} for s in (20, 40)]


def test_a_history_has_a_panel_for_each_thing(figures, tmp_path):
    levels = {"accuracy": 0.75, "f1": 0.85, "sparsity": 0.9}
    plots.plot_history(STEPS, EVALS, levels, "4x1", "mrpc, 4x1 at 0.9", tmp_path / "a.png")
    (figure,) = figures
    assert figure.get_suptitle() == "mrpc, 4x1 at 0.9"
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert list(panels) == ["training loss", "accuracy", "f1", "sparsity", "steps a second"]
    assert panels["training loss"].get_ylim()[0] == panels["steps a second"].get_ylim()[0] == 0
    assert panels["sparsity"].get_ylim() == (0, 1)
    for metric, teacher in (("accuracy", 0.75), ("f1", 0.85)):
        run, dense = panels[metric].lines
        assert list(run.get_xdata()) == [20, 40]
        assert (run.get_color(), dense.get_color()) == (COLOR["vectors-4"], COLOR["dense"])
        assert list(dense.get_ydata()) == [teacher, teacher]
        assert panels[metric].get_title(loc="right") == f"dashed: teacher {teacher}"
        low, high = panels[metric].get_ylim()
        assert low < min(run.get_ydata())
        assert high > teacher
    assert panels["sparsity"].get_title(loc="right") == "dashed: target 0.9"
    assert len(panels["training loss"].lines) == len(panels["steps a second"].lines) == 1
    assert figure.axes[-1].get_xlabel() == "optimizer step"
    assert all(axes.get_xlim() == (0, 40) for axes in figure.axes)


def test_a_history_of_a_dense_run_and_of_an_earlier_version(figures, tmp_path):
    steps = [{"step": 1, "loss": 0.0, "sparsity": 1e-7}]
    plots.plot_history(steps, [], {}, "dense", "mrpc, dense", tmp_path / "a.png")
    assert [axes.get_title(loc="left") for axes in figures[0].axes] == ["training loss"]
    assert figures[0].axes[0].lines[0].get_marker() == "o", "else one point could not be seen"
    plots.plot_history([], [], {}, "dense", "", tmp_path / "a.png")
    assert len(figures) == 1


def test_gains(figures, tmp_path):
    layers = {("4x1", "64x64"): [0.5, 2.0], ("4x1", "256x64"): [1.0, 3.0], ("2:4", "64x64"): [1.0, 1.2]}
    models = {"model, memory": [0.9, 1.5], "model, speed": [1.0, 1.6], "model, dense again": [1.0, 1.0]}
    plots.plot_gains([1, 4096], layers, models, tmp_path / "a.png")
    (figure,) = figures
    (axes,) = figure.axes
    figure.draw_without_rendering()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "4,096"]
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == ["dense", "4x1, 64x64", "4x1, 256x64", "2:4, 64x64", *models]
    assert list(lines["dense"].get_ydata()) == [1, 1]
    assert lines["dense"].get_color() == COLOR["dense"]
    assert lines["4x1, 64x64"].get_color() == lines["4x1, 256x64"].get_color() == COLOR["vectors-4"]
    assert lines["4x1, 64x64"].get_linestyle() == lines["2:4, 64x64"].get_linestyle() == "-"
    assert lines["4x1, 256x64"].get_linestyle() == "--"
    legend = figure.legends[0].get_window_extent()
    assert not legend.overlaps(axes.get_window_extent())
    assert legend.x0 >= 0
    assert legend.x1 <= figure.bbox.width


def test_without_matplotlib_there_is_no_picture(monkeypatch, tmp_path):
    monkeypatch.setattr(plots, "has_matplotlib", lambda: False)
    plots.plot_sparsity([("a", "4x1", 0.5)], 0.5, tmp_path / "a.png")
    plots.plot_history(STEPS, EVALS, {}, "4x1", "", tmp_path / "b.png")
    plots.plot_gains([1], {}, {}, tmp_path / "c.png")
    assert list(tmp_path.iterdir()) == []
