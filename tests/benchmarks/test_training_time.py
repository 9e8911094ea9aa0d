"""How long recipes train: the run is a shorter one of the same shape, both ways take turns, and hours are those of the whole."""

import json

import pytest

pytest.importorskip("transformers")


@pytest.fixture
def script(load):
    return load("prune/glue/training_time.py")


def test_lengths_are_scaled_alike(script):
    assert script.scaled("bert-mini-mrpc-2-4", 0.1) == [
        "--num_train_epochs", "1.5", "--sparsity_warm_epochs", "0.1", "--cooldown_epochs", "0.5", "--pruning_frequency", "5",
    ]  # fmt: skip
    assert script.scaled("bert-mini-mrpc-2-4", 0.001)[-1] == "1", "of steps there is none shorter"
    assert "--pruning_frequency" not in script.scaled("bert-mini-mrpc-mixed", 0.1), "it is chosen by the length"


def test_rows_are_added_and_made_anew(script, tmp_path, monkeypatch, capsys):
    asked = []

    def trained(recipe, flags):
        asked.append((recipe, "off" in flags))
        return {"train_seconds": 360.0 if "off" in flags else 180.0, "steps": {"total_steps": 7}, "versions": {}}

    monkeypatch.setattr(script, "trained", trained)
    out = tmp_path / "new" / "time.json"
    for recipes in (["minilm-mrpc-4x1"], ["minilm-mrpc-2-4", "minilm-mrpc-4x1"]):
        words = ["x", "--recipes", *recipes, "--data", "d", "--runs", "r", "--share", "0.1", "--out", str(out)]
        monkeypatch.setattr("sys.argv", words)
        script.main()
    rows = json.loads(out.read_text())["rows"]
    assert [row["recipe"] for row in rows] == ["minilm-mrpc-2-4", "minilm-mrpc-4x1"]
    assert rows[0]["times_faster"] == 2.0
    assert rows[0]["whole_hours"] == pytest.approx({"dense": 1.0, "sparse": 0.5})
    assert asked[:4] == [("minilm-mrpc-4x1", True), ("minilm-mrpc-4x1", False)] * 2, "in turns"
    assert "minilm-mrpc-2-4  1.00 h      0.50 h        2.00" in capsys.readouterr().out
