"""`trisparse bench`: the tests that need a GPU, then every benchmark, each in a process of its own; from a checkout.

A run that was stopped goes on where it was. With --model a pruned or compressed model instead, dense against
compressed, anywhere.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from trisparse.prune.errors import PruningError
from trisparse.prune.parser import Parser, not_one_of, one_of
from trisparse.prune.text_table import aligned
from trisparse.suite_steps import STEPS


def make_parser(prog: str) -> Parser:
    """The command's flags."""
    parser = Parser(
        prog=prog,
        usage=f"{prog} (--model MODEL [--tokens N ...] [--pictures N ...] | --suite {{gpu,cpu}} ...) --output_dir DIR",
        description="Time a model dense and compressed, over sizes of batches. Or, in a checkout, run the tests that\n"
        "need a GPU and then every benchmark, each in a process of its own; what was stopped goes on where it was.",
    )  # fmt: skip
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--model", type=Path, metavar="MODEL", help="folder of a transformers model, pruned or compressed"
    )
    what.add_argument("--suite", **one_of(*STEPS), help="gpu needs a CUDA or ROCm device")
    parser.add_argument("--output_dir", type=Path, required=True, metavar="DIR", help="where results are written")
    model = parser.add_argument_group("for --model")
    model.add_argument(
        "--tokens", type=int, nargs="+", default=[1, 16, 128, 1024, 4096], metavar="N",
        help="in a batch of texts (default: 1 16 128 1024 4096)",
    )  # fmt: skip
    model.add_argument(
        "--pictures", type=int, nargs="+", default=[1, 8], metavar="N", help="in a batch of pictures (default: 1 8)"
    )
    suite = parser.add_argument_group("for --suite, whose results lie in a folder for each device")
    suite.add_argument("--only", nargs="+", metavar="NAME", help="steps of the suite, run anew")
    suite.add_argument(
        "--budget_seconds", type=float, metavar="X", help="stop in time; the next run goes on from there"
    )
    suite.add_argument(
        "--dry_run", action="store_true", help="that every step runs, on any machine: smallest shapes, no time is meant"
    )
    return parser


def main(argv: Sequence[str], prog: str = "trisparse bench", root: Path | None = None) -> int:
    """Time a model, or run a suite from the checkout `root`; the exit status is 1 if a step failed, 3 if one is left.

    Raises:
        PruningError: what the user can mend.
    """
    args = make_parser(prog).parse_args(argv)
    if args.model:
        from trisparse.prune.deploy.model_benchmark import benchmark_model

        benchmark_model(args.model, args.tokens, args.output_dir, args.pictures)
        print(f"wrote {args.output_dir / 'model.json'} and model.png")  # noqa: T201
        return 0
    root = root or Path.cwd()
    lacking = [name for name in ("pyproject.toml", "tests", "benchmarks") if not (root / name).exists()]
    if lacking:
        raise PruningError(f"--suite: no {', '.join(lacking)} in {root}; run it in a checkout of trisparse")
    is_gpu = torch.cuda.is_available() and args.suite == "gpu"
    if args.suite == "gpu" and not is_gpu and not args.dry_run:
        raise PruningError("--suite: torch finds no GPU; use --suite cpu")
    names = [step.name for step in STEPS[args.suite]]
    if unknown := [name for name in args.only or () if name not in names]:
        raise PruningError(f"--only: {not_one_of(unknown[0], names)}")
    if args.budget_seconds is not None and args.budget_seconds <= 0:
        raise PruningError(f"--budget_seconds: want more than 0, got {args.budget_seconds:g}")
    folder = args.output_dir / (torch.cuda.get_device_name().replace(" ", "-") if is_gpu else "cpu")
    folder = folder / "dry-run" if args.dry_run else folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PruningError(f"--output_dir: {folder} can't be written to: {error.strerror}") from None
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
    print(f"wrote {folder}")  # noqa: T201
    statuses = {state["status"] for _, state in states}
    return 1 if "failed" in statuses else 3 if "left" in statuses else 0
