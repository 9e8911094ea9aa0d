"""`trisparse report`: runs as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trisparse.prune.glue.output import PAGE
from trisparse.prune.parser import Parser
from trisparse.prune.run_report.page import report


def make_parser(prog: str) -> Parser:
    """The command's flags."""
    parser = Parser(prog=prog, description="Make one HTML page of runs of trisparse train, to attach or to send.")
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="DIR", help="output_dir of a run; several are compared"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"where the page is written (default: {PAGE} in DIR, if there is but one)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is no such page")
    return parser


def main(argv: Sequence[str], prog: str) -> int:
    """Write the page.

    Raises:
        PruningError: what the user can mend.
    """
    report(make_parser(prog).parse_args(argv))
    return 0
