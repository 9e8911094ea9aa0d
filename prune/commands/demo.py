"""`trisparse demo`: the whole thing on two tasks of our own making."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from trisparse.prune.errors import PruningError
from trisparse.prune.glue.demo import gains, run, table
from trisparse.prune.parser import Parser


def make_parser(prog: str) -> Parser:
    """The command's flags."""
    parser = Parser(
        prog=prog,
        description="Train, prune and distil a tiny BERT on two made-up tasks, without a network, in a few minutes.\n"
        "The exit status is 1 when the dense model does not learn, or pruning costs too much.",
    )
    parser.add_argument("--output_dir", metavar="DIR", type=Path, default=Path("runs/demo"), help="where it is written")
    return parser


def main(argv: Sequence[str], prog: str) -> int:
    """Run it, print a table and what was gained; the exit status is 1 when a promise is missed.

    Raises:
        PruningError: what the user can mend.
    """
    folder = make_parser(prog).parse_args(argv).output_dir
    if folder.exists() and not folder.is_dir():
        raise PruningError(f"--output_dir: {folder} is a file")
    rows, missed = run(folder)
    sys.stdout.write(f"{table(rows)}\n\n{gains(rows)}\n")
    for line in missed:
        sys.stderr.write(f"missed: {line}\n")
    return 1 if missed else 0
