"""What published rows cost: whose models and whose minutes stand in a line, and that the page has the table."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def costs(load):
    return load("prune/glue/row_costs.py")


def run(row, seconds, processor="p"):
    return {"row": row, "sparse": {"train_seconds": seconds}, "machine": {"processor": processor}}


def model(name, prefer="speed"):
    return {
        "model": name, "prefer": prefer, "linear_bytes_before": 4 << 20, "linear_bytes_after": 1 << 20,
        "times_faster_1": 2.0, "times_faster_32": 3.0,
    }  # fmt: skip


def test_a_line_has_the_fastest_run_of_its_row_and_no_row_is_made_up(costs):
    runs = [run("bert-mini-mrpc-4x1", 60 * minutes, where) for minutes, where in ((9, "p"), (5, "q"), (6, "p"))]
    runs += [run("bert-mini-sst2-4x1", 600.0)]
    models = [model("mrpc-4x1", "memory"), model("mrpc-4x1"), model("mrpc-mixed")]
    _, _, *lines = costs.table(runs, models).splitlines()
    assert lines == ["| bert-mini-mrpc-4x1 | 4.0 → 1.0 | 2.00x | 3.00x | 5 | q |"]


def test_the_docs_have_the_table(costs, capsys, monkeypatch):
    results = ROOT / "benchmarks" / "results"
    compressed = map(str, sorted(results.glob("compress_*_cpu.json")))
    monkeypatch.setattr("sys.argv", ["x", "--runs", str(results / "glue_recipes.json"), "--compressed", *compressed])
    costs.main()
    table = capsys.readouterr().out
    assert table.count("\n") > 5
    assert table in (ROOT / "docs" / "published-rows.md").read_text()
