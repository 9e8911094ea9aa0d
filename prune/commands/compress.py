"""`trisparse compress`: a format for every layer of a pruned model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from trisparse.prune.commands.folders import add_folders, add_overwrite, bytes_of_weights, check_device, check_folders
from trisparse.prune.commands.tables import print_table
from trisparse.prune.deploy.checkpoint import check_shard_size, from_pretrained
from trisparse.prune.deploy.compress_checkpoint import compress_checkpoint
from trisparse.prune.deploy.replaced_folder import SAVED
from trisparse.prune.parser import Parser, one_of


def make_parser(prog: str) -> Parser:
    """The command's flags."""
    parser = Parser(prog=prog, description="Give each layer of a pruned model the format that suits its zeros.")
    add_folders(parser, "folder of a transformers model")
    choice = parser.add_argument_group("which format a layer gets")
    choice.add_argument("--prefer", **one_of("speed", "memory"), default="speed", help="what it is chosen by")
    choice.add_argument(
        "--tokens", type=int, nargs="+", default=[1, 4096], metavar="N",
        help="numbers of tokens in a batch that matter (default: 1 4096)",
    )  # fmt: skip
    choice.add_argument("--no_measure", action="store_true", help="trust a static model instead of timing layers")
    choice.add_argument("--keep_channels", action="store_true", help="remove no channels and heads")
    how = parser.add_argument_group("how it is loaded and written")
    how.add_argument("--dtype", **one_of("float32", "float16", "bfloat16"), help="convert to it first")
    how.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", metavar="NAME",
        help="to measure on (default: cuda where there is one, else cpu)",
    )  # fmt: skip
    how.add_argument("--max_shard_size", default="5GB", metavar="SIZE", help="of a file")
    add_overwrite(how)
    return parser


def main(argv: Sequence[str], prog: str) -> int:
    """Load, compress, save, print what came of it and a row a layer.

    Raises:
        PruningError: what the user can mend.
    """
    args = make_parser(prog).parse_args(argv)
    check_folders(args.input, args.output, SAVED, args.overwrite)
    check_shard_size(args.max_shard_size)
    check_device(args.device)
    model: Any = from_pretrained(args.input, **({"dtype": getattr(torch, args.dtype)} if args.dtype else {}))
    report = compress_checkpoint(
        model.to(args.device), args.input, args.output, args.prefer, args.tokens, measure=not args.no_measure,
        remove_channels=not args.keep_channels, max_shard_size=args.max_shard_size, overwrite=args.overwrite,
    )  # fmt: skip
    before, after = (bytes_of_weights(folder) for folder in (args.input, args.output))
    print(f"files {before / 2**20:.1f} -> {after / 2**20:.1f} MiB; {report.summary()}")  # noqa: T201
    head, *rows = report.table()
    print_table(head, rows)
    return 0
