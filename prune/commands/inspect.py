"""`trisparse inspect`: what a checkpoint holds, and whether its files are whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trisparse.prune.commands.tables import print_table
from trisparse.prune.deploy.checkpoint_files import read_config, weight_files
from trisparse.prune.deploy.inspection import TOKENS, dense_rows, packed_rows
from trisparse.prune.deploy.layer_spec import is_ours
from trisparse.prune.parser import Parser


def make_parser(prog: str) -> Parser:
    """The command's flags."""
    parser = Parser(prog=prog, description="Show what a checkpoint holds, and whether its files are whole.")
    parser.add_argument("folder", metavar="MODEL", type=Path, help="folder of a model, dense or compressed")
    return parser


def main(argv: Sequence[str], prog: str) -> int:
    """Print a row a layer, and a line of its files.

    Raises:
        PruningError: there is no checkpoint, or it is damaged.
    """
    folder = make_parser(prog).parse_args(argv).folder
    config = read_config(folder)
    is_packed = is_ours(config.get("quantization_config"))
    rows = packed_rows(folder) if is_packed else dense_rows(folder)
    head = ["layer", "shape", "format", "stored", "KiB", "of dense", f"CPU, {' / '.join(map(str, TOKENS))} tokens", ""]
    print_table(head, [row.cells() for row in rows])
    files = weight_files(folder)
    size = sum(path.stat().st_size for path in files) / 2**20
    state = "whole" if is_packed and config["quantization_config"].get("files") else "readable"
    print(f"{len(files)} files, {size:.1f} MiB, {state}; {len(rows)} layers")  # noqa: T201
    return 0
