"""`trisparse-bench`: the tests that need a GPU, then every benchmark, then one JSON; from a checkout.

With --model a pruned or compressed model instead, dense against compressed, anywhere.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import torch

_RESULT = "ops_{}.json"
_TOKENS = [1, 16, 128, 1024, 4096]
_CPU = {  # what the CPU's suite runs after the benchmarks that are tests: its result, and flags besides
    "benchmarks/sparse_ops/bench_cpu_products.py": ["cpu_products.json"],
    "benchmarks/prune/deploy/bench_cpu_model.py": ["cpu_model.json"],
    "benchmarks/prune/pruner/bench_sparse_training.py": ["sparse_training_cpu.json"],
    "benchmarks/sparse_ops/blocks/crossover.py": ["crossover_cpu.json", "--device", "cpu"],
}


def _benchmark_model(args: argparse.Namespace) -> int:
    from trisparse.prune.deploy.model_benchmark import benchmark_model
    from trisparse.prune.errors import PruningError

    try:
        benchmark_model(args.model, args.tokens, args.out)
    except (PruningError, OSError) as error:  # an OSError names its file
        print(f"trisparse-bench: {error}", file=sys.stderr)  # noqa: T201
        return 2
    print(f"trisparse-bench: wrote {args.out / 'model.json'} and model.png")  # noqa: T201
    return 0


def main(argv: Sequence[str], root: Path | None = None) -> int:
    """Run a suite; the exit status is not zero when a test or a benchmark's correctness gate fails."""
    parser = argparse.ArgumentParser(prog="trisparse-bench", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--suite", choices=["cpu", "gpu"], help="gpu needs a CUDA or ROCm device")
    what.add_argument("--model", type=Path, help="folder of a transformers model")
    parser.add_argument("--tokens", type=int, nargs="+", default=_TOKENS, help="in a batch, for --model")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    args = parser.parse_args(argv)
    if args.model:
        return _benchmark_model(args)
    root = root or Path.cwd()
    lacking = [name for name in ("pyproject.toml", "tests", "benchmarks") if not (root / name).exists()]
    if lacking:
        parser.error(f"no {', '.join(lacking)} in {root}; run it in a checkout of trisparse")
    if args.suite == "gpu" and not torch.cuda.is_available():
        parser.error("--suite gpu: torch finds no GPU; use --suite cpu")
    device = torch.cuda.get_device_name().replace(" ", "-") if args.suite == "gpu" else "cpu"
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out: {error}")
    result = (args.out / _RESULT.format(device)).resolve()
    steps = [["benchmarks", "--capture=no", "--benchmark-disable-gc", "--rows", str(result)]]
    if args.suite == "gpu":
        steps.insert(0, ["tests/kernels", "--ignore=tests/kernels/gpu/test_aot.py"])
    pytest = str(Path(sysconfig.get_path("scripts")) / "pytest")
    failed = [step[0] for step in steps if subprocess.run([pytest, *step], cwd=root).returncode]
    for script, (name, *flags) in _CPU.items() if args.suite == "cpu" else ():
        command = [sys.executable, script, "--out", str((args.out / name).resolve()), *flags]
        failed += [script] if subprocess.run(command, cwd=root).returncode else []
    if failed:
        print(f"trisparse-bench: failed in {' and '.join(failed)}")  # noqa: T201
        return 1
    print(f"trisparse-bench: wrote {result}")  # noqa: T201
    return 0
