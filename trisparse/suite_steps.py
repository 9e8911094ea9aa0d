"""The steps of `trisparse bench --suite`: which file each runs, and where it writes."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import NamedTuple

_PYTEST = "import sys; sys.path.pop(0); import pytest; sys.exit(pytest.main())"  # `-m` would find our folders
_WORKERS = 12  # a GPU has memory for so many


class Step(NamedTuple):
    """A process to run.

    Attributes:
        kind: `tests`, `benchmark` for a file of tests that keep rows, or `script`.
        file: in the checkout.
        name: for `--only`; its result is `name.json`.
    """

    kind: str
    file: str
    name: str

    @property
    def result(self) -> str:
        """What it writes, in the folder of the results."""
        return f"{self.name}.xml" if self.kind == "tests" else f"{self.name}.json"


def _benchmark(file: str) -> Step:
    return Step("benchmark", f"benchmarks/{file}", Path(file).stem.removeprefix("bench_"))


def _script(file: str, name: str) -> Step:
    return Step("script", f"benchmarks/{file}", name)


TESTS = Step("tests", "tests/kernels", "tests")
_OPERATORS = [
    _benchmark(f"sparse_ops/{file}")
    for file in (
        "choosing/bench_score_units.py", "choosing/bench_apply_masks.py", "choosing/bench_nm_mask.py",
        "choosing/bench_cost_groups.py", "choosing/bench_nm_mask_2d.py", "choosing/bench_masked_adamw.py",
        "choosing/bench_select_units.py", "two_four/bench_pack_24.py", "two_four/bench_mm_24.py",
        "blocks/bench_spmm.py",
    )
]  # fmt: skip
_STEP, _COMPRESS = _benchmark("prune/pruner/bench_prune_step.py"), _benchmark("prune/deploy/bench_compress.py")
_CROSSOVER = "sparse_ops/blocks/crossover.py"
STEPS = {
    "gpu": [TESTS, *_OPERATORS, _script(_CROSSOVER, "crossover"), _STEP, _COMPRESS],
    "cpu": [
        *_OPERATORS, _STEP, _COMPRESS, _script("sparse_ops/bench_cpu_products.py", "cpu_products"),
        _script("prune/deploy/bench_cpu_model.py", "cpu_model"),
        _script("prune/pruner/bench_sparse_training.py", "sparse_training_cpu"),
        _script(_CROSSOVER, "crossover_cpu"),
    ],
}  # fmt: skip


def command(step: Step, folder: Path, seconds: float | None, is_dry: bool, device: str) -> list[str]:
    """The command line of a step.

    Args:
        step: what to run.
        folder: of the results.
        seconds: that are left; None for all the time it takes.
        is_dry: the smallest shapes, once.
        device: `cuda` or `cpu`.
    """
    result = str((folder / step.result).resolve())
    flags = [] if seconds is None else ["--budget_seconds", f"{seconds:.0f}"]
    flags += ["--dry_run"] if is_dry else []
    pytest = [sys.executable, "-c", _PYTEST, "-p", "no:cacheprovider"]
    if step.kind == "tests":
        workers = min(_WORKERS, os.cpu_count() or 1)
        shared = ["-n", str(workers), "--dist", "worksteal"] if importlib.util.find_spec("xdist") else []
        files = [f"{step.file}/test_plan.py"] if is_dry else [step.file, f"--ignore={step.file}/gpu/test_aot.py"]
        return [*pytest, *files, *shared, f"--junitxml={result}"]
    if step.kind == "benchmark":
        return [*pytest, step.file, "--capture=no", "--rows", result, *flags]
    own = [*flags, "--device", device] if step.file.endswith(_CROSSOVER) else []  # the only one that can stop
    return [sys.executable, step.file, "--out", result, *own]
