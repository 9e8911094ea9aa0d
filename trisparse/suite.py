"""`trisparse-bench`: the tests that need a GPU, then every benchmark, each in a process of its own; from a checkout.

A run that was stopped goes on where it was. With --model a pruned or compressed model instead, dense against
compressed, anywhere.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from trisparse.prune.text_table import aligned
from trisparse.suite_steps import STEPS

_TOKENS = [1, 16, 128, 1024, 4096]


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trisparse-bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--suite", choices=list(STEPS), help="gpu needs a CUDA or ROCm device")
    what.add_argument("--model", type=Path, help="folder of a transformers model")
    parser.add_argument("--tokens", type=int, nargs="+", default=_TOKENS, help="in a batch, for --model")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="steps of the suite, run anew")
    parser.add_argument("--budget_seconds", type=float, help="stop in time; the next run goes on from there")
    parser.add_argument(
        "--dry_run", action="store_true", help="that every step runs, on any machine: smallest shapes, no time is meant"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the results; a folder in it for each device"
    )
    return parser


def main(argv: Sequence[str], root: Path | None = None) -> int:
    """Run a suite; the exit status is 1 when a step failed, 3 when one is left."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.model:
        return _benchmark_model(args)
    root = root or Path.cwd()
    lacking = [name for name in ("pyproject.toml", "tests", "benchmarks") if not (root / name).exists()]
    if lacking:
        parser.error(f"no {', '.join(lacking)} in {root}; run it in a checkout of trisparse")
    is_gpu = torch.cuda.is_available() and args.suite == "gpu"
    if args.suite == "gpu" and not is_gpu and not args.dry_run:
        parser.error("--suite gpu: torch finds no GPU; use --suite cpu")
    steps = STEPS[args.suite]
    unknown = set(args.only or ()) - {step.name for step in steps}
    if unknown:
        names = ", ".join(step.name for step in steps)
        parser.error(f"--only: want names of {names}, got {', '.join(sorted(unknown))}")
    if args.budget_seconds is not None and args.budget_seconds <= 0:
        parser.error(f"--budget_seconds: want more than 0, got {args.budget_seconds:g}")
    folder = args.out / (torch.cuda.get_device_name().replace(" ", "-") if is_gpu else "cpu")
    folder = folder / "dry-run" if args.dry_run else folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out: {error}")
    return _run(args, root, folder, "cuda" if is_gpu else "cpu")


def _run(args: argparse.Namespace, root: Path, folder: Path, device: str) -> int:
    from trisparse.promises import table
    from trisparse.suite_run import Suite

    steps = [step for step in STEPS[args.suite] if not args.only or step.name in args.only]
    suite = Suite(steps, root, folder, args.budget_seconds, args.dry_run, device)
    suite.run()
    states = suite.states.items()
    rows = [
        [name, state["status"], f"{state.get('seconds', 0):.0f} s", state.get("reason", "")] for name, state in states
    ]
    lines = ["", *aligned([["step", "", "", ""], *rows])]
    if args.suite == "gpu" and not args.dry_run:
        lines += ["", *aligned(table(folder))]
    print("\n".join(lines))  # noqa: T201
    print(f"trisparse-bench: wrote {folder}")  # noqa: T201
    statuses = {state["status"] for _, state in states}
    return 1 if "failed" in statuses else 3 if "left" in statuses else 0
