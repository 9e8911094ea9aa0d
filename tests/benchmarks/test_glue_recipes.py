"""The table of published rows: what counts as met, what is run again, and that nothing is claimed of what was not run."""

import argparse
import json
from pathlib import Path

import pytest

from trisparse.prune.glue.parse import parse_arguments

pytest.importorskip("matplotlib")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipes(load):
    return load("prune/glue/glue_recipes.py")


def result(task, value, **more):
    metric = {"f1": value, "accuracy": value}
    return {
        "task": task, "eval": metric, "best_eval": metric, "epochs": 15.0, "train_seconds": 1.0, "steps_per_second": 2.0,
        "device": "d", "versions": {}, "arguments": {"learning_rate": 1e-3, "output_dir": "/somewhere"},
    } | more  # fmt: skip


SPARSE = {"sparsity": {"matmul_gemm_conv": 0.4931}, "pattern_verified": True, "complete": True, "notes": []}


def run(row, seed, dense, sparse):
    task = "mrpc" if "-mrpc-" in row else "sst2"
    kinds = {"dense": result(task, dense), "sparse": result(task, sparse, **SPARSE)}
    flags = {"dense": {"num_train_epochs": 5.0, "seed": seed}, "sparse": {}}
    return {"row": row, "seed": seed, "encoder": "e", "machine": {"processor": "p"}, "arguments": flags, **kinds}


def test_a_run_that_was_cut_short_meets_nothing(recipes):
    short = run("bert-mini-mrpc-4x1", 1, 1.0, 1.0)
    assert recipes.summary(short["row"], [short], [short])["verdict"] == "met"
    for key in ("complete", "pattern_verified"):
        broken = short | {"sparse": short["sparse"] | {key: False}}
        assert recipes.summary(short["row"], [short, broken], [short, broken])["verdict"] == "not complete"


@pytest.mark.parametrize(
    ("row", "sparse", "verdict"),
    [
        ("bert-mini-mrpc-4x1", 0.9966, "met"),  # -0.34 % is published
        ("bert-mini-mrpc-4x1", 0.9965, "missed"),
        ("distilbert-mrpc-2-4", 0.9901, "met"),  # a gain is published: -1 % will do
        ("distilbert-mrpc-2-4", 0.9899, "missed"),
        ("bert-mini-mrpc-mixed", 0.5, "no goal"),
    ],
)
def test_verdicts(recipes, row, sparse, verdict):
    some = [run(row, 1, 1.0, sparse)]
    assert recipes.summary(row, some, some)["verdict"] == verdict


def test_best_is_compared_with_best_over_seeds(recipes):
    runs = [run("bert-mini-sst2-4x1", 1, 0.8, 0.79), run("bert-mini-sst2-4x1", 2, 0.7, 0.8)]
    assert recipes.summary("bert-mini-sst2-4x1", runs, runs)["drop"] == 0.0
    table = recipes.table(runs)
    assert (
        "| bert-mini-sst2-4x1 | e | 0.4931 | 0.8000 (0.7500 +- 0.0707) | 0.8000 (0.7950 +- 0.0071) | +0.00% |" in table
    )
    assert table.count("not run") == len(recipes.PUBLISHED) - 1


def test_a_row_of_one_seed_is_compared_with_dense_models_of_all_seeds_that_were_trained_alike(recipes):
    first, better = run("bert-mini-mrpc-2-4", 1, 0.8, 0.8), run("bert-mini-mrpc-4x1", 2, 0.9, 0.8)
    again = run("bert-mini-mrpc-4x1", 1, 0.8, 0.8)
    found = recipes.summary(first["row"], [first], [first, better, again])
    assert sorted(found["dense"]) == [0.8, 0.9], "each seed once"
    assert found["drop"] == pytest.approx(0.8 / 0.9 - 1)
    halves = better["arguments"] | {"dense": better["arguments"]["dense"] | {"mixed_precision": "bf16"}}
    others = [better | {"arguments": halves}, better | {"encoder": "f"}, run("bert-mini-sst2-4x1", 3, 0.9, 0.8)]
    others.append(better | {"machine": {"processor": "q"}})
    assert recipes.summary(first["row"], [first], [first, *others])["dense"] == [0.8]


@pytest.mark.parametrize(("task", "start"), [("mrpc", "seed-1"), ("sst2", "seed-1/best")])
def test_a_row_starts_from_the_dense_model_of_its_seed(recipes, tmp_path, monkeypatch, task, start):
    made = []

    def run_glue(recipe, folder, flags, until):
        made.append(flags)
        return result(task, 0.85) if len(made) == 1 else None

    monkeypatch.setattr(recipes, "run_glue", run_glue)
    args = argparse.Namespace(minilm="/enc", data=None, runs=tmp_path, mixed_precision="no")
    assert recipes.make_run(f"bert-mini-{task}-4x1", 1, args, 0.0) is None
    _, flags = made
    assert flags[flags.index("--model_name_or_path") + 1].endswith(f"minilm-{task}-dense/{start}")


def test_the_command_adds_to_its_file_and_makes_no_run_twice(recipes, tmp_path, monkeypatch, capsys):
    made, never = [], {"best_eval": None}

    def run_glue(recipe, folder, flags, until):
        made.append((recipe, folder.parent.name, flags))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "all_results.json").write_text("{}")
        return result("mrpc", 0.85, **SPARSE, **never if recipe.endswith("mixed") else {})

    monkeypatch.setattr(recipes, "run_glue", run_glue)
    out = tmp_path / "rows.json"
    for row, seed in (
        ("bert-mini-mrpc-2-4", "1"), ("bert-mini-mrpc-4x1", "1"), ("bert-mini-mrpc-4x1", "1"), ("bert-mini-mrpc-mixed", "1"),
    ):  # fmt: skip
        monkeypatch.setattr("sys.argv", [
            "glue_recipes.py", "--rows", row, "--seeds", seed, "--out", str(out), "--minilm", "/enc", "--data", "/data",
            "--runs", str(tmp_path),
        ])  # fmt: skip
        recipes.main()
    content = json.loads(out.read_text())
    assert [(r["row"], r["encoder"]) for r in content["runs"]] == [
        ("bert-mini-mrpc-2-4", "all-MiniLM-L6-v2"),
        ("bert-mini-mrpc-4x1", "all-MiniLM-L6-v2"),
    ]
    assert content["runs"][0]["arguments"]["sparse"] == {"learning_rate": 1e-3}, "no path of this machine"
    assert "bert-mini-mrpc-mixed: left out, for it was never evaluated after" in capsys.readouterr().out
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    (dense, _, dense_flags), (sparse, *_) = made[:2]
    assert (dense, sparse) == ("minilm-mrpc-dense", "minilm-mrpc-2-4")
    assert "/enc" in dense_flags


def test_another_encoder_makes_only_the_rows_that_it_has_a_recipe_for(recipes, tmp_path, monkeypatch):
    (tmp_path / "minilm-sst2-4x1.yaml").write_text("")
    monkeypatch.setattr(recipes, "RECIPES", tmp_path)
    made = []
    monkeypatch.setattr(recipes, "run_glue", lambda recipe, *_: made.append(recipe))
    words = [
        "x",
        "--rows",
        "bert-mini-sst2-4x1",
        "bert-mini-sst2-2-4",
        "--minilm",
        "/enc",
        "--out",
        str(tmp_path / "a.json"),
    ]
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setattr(recipes, "draw", lambda *_: None)
    recipes.main()
    assert made == ["minilm-sst2-dense", "bert-mini-sst2-dense"]


def test_the_docs_have_the_table(recipes):
    runs = json.loads((ROOT / "benchmarks/results/glue_recipes.json").read_text())["runs"]
    assert recipes.table(runs) in (ROOT / "docs" / "published-rows.md").read_text()


@pytest.fixture
def ended(tmp_path):
    """The folder of a run that has ended, with the flags that it was made with."""
    flags = ["--mixed_precision", "bf16", "--model_name_or_path", "m"]
    words = ["--recipe", "bert-mini-mrpc-2-4", *flags, "--output_dir", str(tmp_path)]
    text = json.dumps({"arguments": parse_arguments(words).to_dict()})
    (tmp_path / "all_results.json").write_text(text)
    return tmp_path, flags


def test_a_run_that_has_ended_is_read_and_a_spent_budget_starts_none(recipes, ended):
    folder, flags = ended
    assert "arguments" in recipes.run_glue(
        "bert-mini-mrpc-2-4", folder, [*flags, "--dataset_dir", str(folder)], until=0.0
    )
    assert recipes.run_glue("bert-mini-mrpc-2-4", folder / "new", flags, until=0.0) is None


def test_a_run_of_other_flags_is_not_taken_for_the_one_asked_for(recipes, ended):
    folder, flags = ended
    message = r"--runs: .*all_results.json is of a run with --mixed_precision bf16, not no; give another folder"
    with pytest.raises(SystemExit, match=message):
        recipes.run_glue("bert-mini-mrpc-2-4", folder, flags[2:], until=0.0)


def test_a_run_from_before_a_flag_did_not_have_it(recipes, ended):
    folder, flags = ended
    file = folder / "all_results.json"
    content = json.loads(file.read_text())
    del content["arguments"]["label_loss_weight"]
    file.write_text(json.dumps(content))
    assert recipes.run_glue("bert-mini-mrpc-2-4", folder, flags, until=0.0) == content
    with pytest.raises(SystemExit, match="a run with --label_loss_weight 0.0, not 1.0"):
        recipes.run_glue("bert-mini-mrpc-2-4", folder, [*flags, "--label_loss_weight", "1"], until=0.0)


def test_a_run_goes_on_from_wherever_it_was_stopped(recipes, tmp_path, capsys):
    for file, flag in (
        (".saving", "--overwrite_output_dir"),
        ("checkpoint.pt", f"--resume_from_checkpoint {tmp_path}"),
    ):
        (tmp_path / file).write_text("")
        recipes.run_glue("bert-mini-mrpc-2-4", tmp_path, [], until=0.0)
        assert f"--output_dir {tmp_path} {flag}\n" in capsys.readouterr().out
