"""Several budgets in a row: what runs, what is gone on with, and what is written."""

import json

import pytest

from trisparse.cli import main
from trisparse.prune.glue import sweep

FLAGS = ["--model_name_or_path", "m", "--task_name", "mrpc", "--distill_loss_weight", "5"]


@pytest.fixture
def runs(monkeypatch):
    """Stands in for trisparse train: writes what it would, and remembers its words."""
    made = []

    def run(folder, words):
        made.append(words)
        folder.mkdir(parents=True, exist_ok=True)
        target = float(words[words.index("--target_speedup") + 1])
        if (folder / "broken").exists():
            raise sweep.PruningError(f"{folder}: the run ended with 1")
        found = {
            "arguments": sweep.parse_arguments(words).to_dict(), "best_eval": {"accuracy": 0.8, "f1": 0.9 - target / 100},
            "eval": {"f1": 0.1}, "teacher_eval": {"accuracy": 0.81, "f1": 0.89}, "train_seconds": 1.0, "pattern": "4x1",
            "sparsity": {"pruned_layers": 1 - 0.5 / target},
            "speed": {"promised": target, "mean": target * 0.98, "times_faster": {"128": target * 0.98}},
        }  # fmt: skip
        (folder / "all_results.json").write_text(json.dumps(found))

    monkeypatch.setattr(sweep, "_run", run)
    return made


def words(folder, *speedups):
    return ["sweep", "--speedups", *speedups, "--output_dir", str(folder), *FLAGS]


def test_runs_table_and_picture(runs, tmp_path, capsys):
    assert main(words(tmp_path, "3", "1.5")) == 0
    assert [w[w.index("--target_speedup") + 1] for w in runs] == ["1.5", "3"]
    assert all({"--do_prune", "--compress", *FLAGS} <= set(w) for w in runs)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["target", "promised", "measured", "accuracy", "zeros"]
    assert lines[1].split() == ["dense", "1.00", "0.8100"]
    assert lines[3].split() == ["3", "3.00", "2.94", "0.8000", "0.8333"]
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert [row["measured"] for row in found["runs"]] == [1.47, 2.94]
    assert found["dense"]["f1"] == 0.89
    assert (tmp_path / "sweep.png").stat().st_size > 1000


def test_the_picture(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    figures = []
    monkeypatch.setattr(sweep, "save", lambda figure, path: figures.append(figure))
    row = {"pattern": "4x1", "teacher_eval": {"f1": 0.9}, "eval": {"f1": 0.8}, "zeros": 0.75, "measured": 2.0}
    sweep.plot([row, {**row, "measured": 1.5, "zeros": 0.5}], "f1", tmp_path / "a.png")
    (axes,) = figures[0].axes
    level, dense, runs = axes.lines
    assert (list(level.get_ydata()), list(dense.get_xdata())) == ([0.9, 0.9], [1])
    assert level.get_color() == dense.get_color() != runs.get_color()
    assert (list(runs.get_xdata()), list(runs.get_ydata())) == ([1.5, 2.0], [0.8, 0.8])
    assert [text.get_text() for text in axes.texts] == ["75% zeros", "50% zeros"]
    assert [text.get_text() for text in figures[0].legends[0].texts] == ["dense", "4x1"]
    sweep.plot([row | {"teacher_eval": {}}], "f1", tmp_path / "a.png")
    assert len(figures[1].axes[0].lines) == 1, "without a teacher no dense model is known"


def test_what_has_ended_is_not_made_again(runs, tmp_path):
    assert main(words(tmp_path, "2")) == 0
    assert main(words(tmp_path, "2", "3")) == 0
    assert [w[w.index("--target_speedup") + 1] for w in runs] == ["2", "3"]


def test_mistakes_are_told_before_the_first_run(runs, tmp_path, capsys):
    assert main([*words(tmp_path, "2"), "--sed", "3"]) == 2
    assert "--sed: unknown argument; did you mean" in capsys.readouterr().err
    assert main([*words(tmp_path, "2"), "--target_sparsity", "0.5"]) == 2
    assert "target_sparsity: target_speedup says how far to prune; leave one of them out" in capsys.readouterr().err
    assert not runs
    assert main(words(tmp_path, "2")) == 0
    runs.clear()
    assert main([*words(tmp_path, "2"), "--learning_rate", "1e-3"]) == 2
    assert "is of a run with --learning_rate 5e-05, not 0.001; give another --output_dir" in capsys.readouterr().err
    assert not runs


def test_a_run_that_fails_is_told(runs, tmp_path, capsys):
    (tmp_path / "speedup-2").mkdir()
    (tmp_path / "speedup-2" / "broken").touch()
    assert main(words(tmp_path, "2")) == 2
    assert "the run ended with 1" in capsys.readouterr().err
