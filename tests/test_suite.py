"""trisparse-bench runs tests and benchmarks, and its exit status says whether they passed."""

import json

import pytest
import torch

from trisparse.suite import _CPU, main

CONFTEST = """
import json
from pathlib import Path

def pytest_addoption(parser):
    parser.addoption("--rows", type=Path)

def pytest_sessionfinish(session):
    session.config.getoption("--rows").write_text(json.dumps({"rows": []}))
"""


SCRIPT = """
import sys
from pathlib import Path

if __name__ == "__main__":
    Path(sys.argv[2]).write_text(" ".join(sys.argv[3:]))
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout with one benchmark, which fails if told so."""

    def make(passes):
        for name in ("tests", "benchmarks"):
            (tmp_path / name).mkdir()
        (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\npython_files = ["bench_*.py"]\n')
        (tmp_path / "benchmarks" / "conftest.py").write_text(CONFTEST)
        (tmp_path / "benchmarks" / "bench_one.py").write_text(f"def test_one():\n    assert {passes}\n")
        for script in _CPU:
            (tmp_path / script).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / script).write_text(SCRIPT)
        return tmp_path

    return make


@pytest.mark.parametrize("passes", [True, False])
def test_the_exit_status_is_that_of_the_benchmarks(checkout, passes, capfd):
    root = checkout(passes)
    assert main(["--suite", "cpu", "--out", str(root / "results")], root) == (0 if passes else 1)
    assert json.loads((root / "results" / "ops_cpu.json").read_text()) == {"rows": []}
    assert (root / "results" / "cpu_products.json").read_text() == ""
    assert (root / "results" / "crossover_cpu.json").read_text() == "--device cpu"
    assert ("wrote" if passes else "failed in benchmarks") in capfd.readouterr().out


def test_a_script_that_fails_is_named(checkout, capfd):
    root = checkout(True)
    (script, *_) = _CPU
    (root / script).write_text("if __name__ == '__main__':\n    raise SystemExit(3)")
    assert main(["--suite", "cpu", "--out", str(root / "results")], root) == 1
    assert f"failed in {script}" in capfd.readouterr().out


def test_a_mistake_is_one_line(tmp_path, checkout, capfd):
    with pytest.raises(SystemExit, match="2"):
        main(["--suite", "cpu", "--out", str(tmp_path / "out")], tmp_path)
    assert "no pyproject.toml, tests, benchmarks in" in capfd.readouterr().err
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="2"):
            main(["--suite", "gpu", "--out", str(tmp_path / "out")], checkout(True))
        assert "--suite gpu: torch finds no GPU; use --suite cpu" in capfd.readouterr().err
