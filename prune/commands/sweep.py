"""`trisparse sweep`: a run of `trisparse train` for each budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trisparse.prune.glue.sweep import sweep
from trisparse.prune.parser import Parser


def make_parser(prog: str) -> Parser:
    """The command's own flags."""
    parser = Parser(
        prog=prog, allow_abbrev=False, usage=f"{prog} --speedups S [S ...] --output_dir DIR [flags of trisparse train]",
        description="Set accuracy against measured speed: train once for each budget, in a folder of its own. What\n"
        "has ended is not made again, and what was interrupted goes on. All flags of trisparse train are taken, too.",
    )  # fmt: skip
    parser.add_argument(
        "--speedups", type=float, nargs="+", required=True, metavar="S", help="times as fast as dense, one for each run"
    )
    parser.add_argument("--output_dir", type=Path, required=True, metavar="DIR", help="a folder with one for each run")
    return parser


def main(argv: Sequence[str], prog: str) -> int:
    """Make the runs, and write a table and a picture.

    Raises:
        PruningError: what the user can mend.
    """
    args, flags = make_parser(prog).parse_known_args(argv)
    sweep(args.speedups, args.output_dir, flags)
    return 0
