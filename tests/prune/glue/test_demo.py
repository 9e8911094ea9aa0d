"""The demo's data: balanced, in GLUE's format, and beyond a bag of words."""

import json

import pytest

from trisparse.cli import main
from trisparse.prune.glue.demo import bag_of_words, gains, table
from trisparse.prune.glue.demo_data import TASKS, vocabulary, write_task

pytest.importorskip("sklearn")


@pytest.mark.parametrize("task", TASKS)
def test_data(tmp_path, task):
    write_task(tmp_path, task, train=4000, validation=1000)
    rows = {
        s: [json.loads(x) for x in (tmp_path / f"{s}.jsonl").read_text().splitlines()] for s in ("train", "validation")
    }
    assert [len(rows[s]) for s in rows] == [4000, 1000]
    texts = {s: {tuple(v for k, v in r.items() if k.startswith("sentence")) for r in rows[s]} for s in rows}
    assert not texts["train"] & texts["validation"]
    assert 0.45 < sum(r["label"] for r in rows["train"]) / 4000 < 0.55
    words = {w for pair in texts["train"] for text in pair for w in text.split()}
    assert words <= set(vocabulary())
    assert bag_of_words(tmp_path) <= 0.6


def test_the_table():
    sparsity = {"pruned_layers": 0.5, "matmul_gemm_conv": 0.47, "all_parameters": 0.4}
    rows = [
        {"task": "mrpc", "pattern": "dense", "eval": {"accuracy": 0.96}, "sparsity": sparsity, "seconds": 1.0},
        {"task": "mrpc", "pattern": "2:4", "target_sparsity": 0.5, "eval": {"accuracy": 0.948}, "sparsity": sparsity,
         "pattern_verified": True, "seconds": 2.0, "compressed": {"times_faster": 1.234, "bytes": 0.6}},
        {"task": "random", "pattern": "4x1", "target_sparsity": 0.9, "compressed": {"times_faster": 4.0, "bytes": 0.2}, "seconds": 3.0},
    ]  # fmt: skip
    head, dense, sparse, large = table(rows).splitlines()
    assert len(head) == len(dense) == len(sparse) == len(large)
    assert large.split() == ["random", "4x1", "0.9", *["-"] * 7, "4.00x", "3.0"]
    assert sparse.split() == [
        "mrpc",
        "2:4",
        "0.5",
        "0.9600",
        "0.9480",
        "-1.25%",
        "0.5000",
        "0.4700",
        "0.4000",
        "yes",
        "1.23x",
        "2.0",
    ]


def test_the_last_lines_say_what_was_gained():
    rows = [
        {"task": "mrpc", "pattern": "dense", "eval": {"accuracy": 0.96}},
        {"task": "mrpc", "pattern": "2:4", "target_sparsity": 0.5, "eval": {"accuracy": 0.948},
         "compressed": {"times_faster": 1.234, "bytes": 0.6}},
        {"task": "random", "pattern": "4x1", "target_sparsity": 0.9, "compressed": {"times_faster": 4.0, "bytes": 0.2}},
    ]  # fmt: skip
    assert gains(rows).splitlines()[1:3] == [
        "  mrpc, 2:4 at 0.5: accuracy 0.960 -> 0.948, 60% of the bytes, 1.23 times as fast",
        "  random, 4x1 at 0.9: 20% of the bytes, 4.00 times as fast",
    ]


def test_a_missed_promise_fails_the_demo(tmp_path, monkeypatch, capsys):
    from trisparse.prune.glue import demo

    monkeypatch.setattr(demo, "_TRAIN", 64)  # too little to learn from
    monkeypatch.setattr(demo, "_VALIDATION", 50)
    keep = tmp_path / "keep.txt"
    keep.write_text("mine")
    assert main(["demo", "--output_dir", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "missed: mrpc: the dense model gets" in captured.err
    rows = json.loads((tmp_path / "demo_results.json").read_text())
    assert [row["pattern"] for row in rows] == ["dense", "2:4", "4x1", "1xchannel"] * 2 + ["4x1"]
    assert all(row["compressed"]["times_faster"] > 0 for row in rows if row["pattern"] != "dense")
    assert all(0 < row["compressed"]["bytes"] < 1 for row in rows if row["pattern"] == "1xchannel")
    assert keep.read_text() == "mine", "nothing but the demo's own files is touched"


def test_bad_input_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for argv, message in (
        (["--out", str(tmp_path / "file")], "--output_dir: "),
        (["--outt", "x"], "--outt: unknown argument; did you mean --output_dir?"),
    ):
        assert main(["demo", *argv]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("trisparse demo: error: ")
        assert message in line
