"""trisparse bench: a process a file, rows as they are measured, on after what fails, on where it was stopped."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from trisparse import PruningError, suite, suite_rows
from trisparse.promises import PROMISES, table
from trisparse.suite import main
from trisparse.suite_steps import STEPS, Step

ROOT = Path(__file__).parents[1]
FILES = {
    "good": "def test_one(rows):\n    rows({'op': 'one', 'n': 1})\n\ndef test_two(rows):\n    rows({'op': 'two', 'n': 2})\n",
    "bad": "def test_one():\n    assert 1 == 2, 'no'\n\ndef test_two(rows):\n    rows({'op': 'two', 'n': 2})\n",
    "broken": "import a_package_that_is_not_there\n",
    "crash": (
        "import os\n\ndef test_one(rows):\n    rows({'op': 'one'})\n\ndef test_dies():\n    os._exit(9)\n\n"
        "def test_two(rows):\n    rows({'op': 'two'})\n"
    ),
    "lost": (
        "def test_one():\n    raise RuntimeError('CUDA error: an illegal memory access')\n\n"
        "def test_two(rows):\n    import os\n    rows({'op': 'two', 'process': os.getpid()})\n"
    ),
    "slow": "import time\n\ndef test_one(rows):\n    rows({'op': 'one'})\n    time.sleep(8)\n\ndef test_two(rows):\n    rows({'op': 'two'})\n",
}
SCRIPT = "import sys\nfrom pathlib import Path\n\nPath(sys.argv[2]).write_text('{}')\nraise SystemExit({status})\n"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with these files of benchmarks and a script, which are all of the CPU's suite."""

    def make(*names, status=None):
        for name in ("tests", "benchmarks"):
            (tmp_path / name).mkdir()
        (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\npython_files = ["bench_*.py"]\n')
        shutil.copy(ROOT / "benchmarks/conftest.py", tmp_path / "benchmarks")
        steps = []
        for name in names:
            steps.append(Step("benchmark", f"benchmarks/bench_{name}.py", name))
            (tmp_path / steps[-1].file).write_text(FILES[name])
        if status is not None:
            steps.append(Step("script", "benchmarks/script.py", "script"))
            (tmp_path / "benchmarks/script.py").write_text(SCRIPT.replace("{status}", str(status)))
        monkeypatch.setitem(suite.STEPS, "cpu", steps)
        return tmp_path

    return make


def bench(root, *flags):
    return main(["--suite", "cpu", "--output_dir", str(root / "results"), *map(str, flags)], root=root)


def results(root, name):
    return json.loads((root / "results/cpu" / f"{name}.json").read_text())


def operators(root, name):
    return [row.get("op", "error" if "error" in row else None) for row in results(root, name)["rows"]]


def test_it_goes_on_after_what_fails(checkout, capfd):
    root = checkout("bad", "broken", "good", status=3)
    assert bench(root) == 1
    assert operators(root, "bad") == ["error", "two"]
    assert results(root, "bad")["rows"][0]["error"] == "in its call: AssertionError: no"
    assert "a_package_that_is_not_there" in results(root, "broken")["rows"][0]["error"]
    assert operators(root, "good") == ["one", "two"]
    states = results(root, "suite")["steps"]
    assert {name: state["status"] for name, state in states.items()} == {
        "bad": "failed", "broken": "failed", "good": "passed", "script": "failed",
    }  # fmt: skip
    assert states["script"]["reason"] == "exit status 3"
    out = capfd.readouterr().out
    assert "1 failed, the first: in its call: AssertionError: no" in out


def test_a_crash_is_a_row_and_the_rest_is_measured(checkout):
    root = checkout("crash", "lost")
    assert bench(root) == 1
    assert operators(root, "crash") == ["one", "error", "two"]
    assert results(root, "crash")["rows"][1] == {
        "test": "benchmarks/bench_crash.py::test_dies", "error": "the process ended",
    }  # fmt: skip
    assert operators(root, "lost") == ["error", "two"]  # in a process of its own, since the device was lost


def test_a_budget_stops_it_and_the_next_run_goes_on(checkout, capfd):
    root = checkout("slow", "good")
    assert bench(root, "--budget_seconds", 7) == 3
    assert operators(root, "slow") == ["one"]
    assert results(root, "slow")["left"] == 1
    assert "no time was left" in capfd.readouterr().out
    assert not (root / "results/cpu/good.json").exists()
    assert bench(root) == 0
    assert operators(root, "slow") == ["one", "two"]
    assert operators(root, "good") == ["one", "two"]


def test_a_finished_suite_is_measured_anew_and_steps_alone(checkout):
    root = checkout("good", status=0)
    for _ in range(2):
        assert bench(root) == 0
        assert operators(root, "good") == ["one", "two"]
    (root / "results/cpu/script.json").unlink()
    assert bench(root, "--only", "good") == 0
    assert not (root / "results/cpu/script.json").exists()
    assert set(results(root, "suite")["steps"]) == {"good", "script"}


def test_no_git_is_no_error(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert suite_rows.machine()["commit"] is None


def test_promises_are_met_or_missed_by_the_worst_row(tmp_path):
    def write(name, *rows):
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": rows}))

    write(
        "score_units",
        {"op": "score_units", "model": "bert-mini 4x1", "what": "trisparse", "share_of_copy": 0.1},
        {"op": "score_units", "model": "bert-base 4x1", "what": "trisparse", "share_of_copy": 0.9},
        {"op": "score_units", "model": "bert-large 4x1", "what": "trisparse", "share_of_copy": 0.7},
        {"op": "score_units", "model": "bert-base 4x1", "what": "eager", "error": "RuntimeError: no"},
    )
    write(
        "select_units",
        {"op": "select_units", "model": "bert-base", "what": "trisparse", "median_ms": 0.5},
        {"op": "select_units", "model": "bert-base", "what": "cat + kthvalue", "median_ms": 60.0},
    )
    write("prune_step", {"op": "prune_step", "model": "bert-base 4x1", "what": "AdamW", "overhead": 0.02})
    write("compress", {"op": "compress", "model": "64x64", "times_faster_1": 0.98, "times_faster_16": 1.2})
    found = {row[0]: row[1:] for row in table(tmp_path)}
    assert found["score_units, share of a copy's bandwidth"] == ["≥ 0.8", "0.7", "bert-large 4x1", "missed: 1 of 2 met"]
    assert found["select_units, times cat + kthvalue"] == ["≥ 100", "120", "bert-base", "met"]
    assert found["an ordinary step's overhead on BERT-base"] == ["≤ 0.03", "0.02", "bert-base 4x1, AdamW", "met"]
    assert found["a compressed layer, times dense"] == ["≥ 0.97", "0.98", "64x64", "met"]
    assert found["apply_masks, share of a copy's bandwidth"][-1] == "not measured"
    assert {promise.step for promise in PROMISES} <= {step.name for step in STEPS["gpu"]}


def test_a_dry_run_of_all_of_the_gpus_suite(tmp_path, capfd):
    assert main(["--suite", "gpu", "--dry_run", "--out", str(tmp_path)], root=ROOT) == 0
    steps = json.loads(next(tmp_path.glob("*/dry-run/suite.json")).read_text())["steps"]
    assert [*steps] == [step.name for step in STEPS["gpu"]]
    assert {state["status"] for state in steps.values()} == {"passed"}
    for step in STEPS["gpu"][1:]:
        rows = json.loads(next(tmp_path.glob(f"*/dry-run/{step.name}.json")).read_text())["rows"]
        assert rows
        assert not any("error" in row for row in rows)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--only", "nothing"], "--only: 'nothing' is not one of good"),
        (["--budget_seconds", "0"], "--budget_seconds: want more than 0, got 0"),
    ],
)
def test_mistakes_are_one_line(checkout, flags, said):
    with pytest.raises(PruningError, match=said):
        bench(checkout("good"), *flags)


def test_it_wants_a_checkout_and_a_gpu(tmp_path, checkout):
    with pytest.raises(PruningError, match="--suite: no pyproject.toml, tests, benchmarks in"):
        bench(tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(PruningError, match="--suite: torch finds no GPU; use --suite cpu"):
            main(["--suite", "gpu", "--output_dir", str(tmp_path / "out")], root=checkout("good"))
