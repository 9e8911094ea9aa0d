"""`trisparse export`: a compressed model for programs without trisparse."""

from __future__ import annotations

from collections.abc import Sequence

from trisparse.prune.commands.folders import add_folders, add_overwrite, bytes_of_weights, check_folders
from trisparse.prune.deploy.checkpoint import from_pretrained
from trisparse.prune.deploy.compress_checkpoint import copy_small_files
from trisparse.prune.deploy.export import FORMATS, check_format, write_export
from trisparse.prune.deploy.replaced_folder import EXPORTED, replaced_folder
from trisparse.prune.parser import Parser


def make_parser(prog: str) -> Parser:
    """The command's flags."""
    parser = Parser(prog=prog, description="Write a compressed model for programs without trisparse.")
    add_folders(parser, "folder of a compressed model")
    parser.add_argument("--format", required=True, metavar=f"{{{','.join(FORMATS)}}}", help="what to write")
    add_overwrite(parser)
    return parser


def main(argv: Sequence[str], prog: str) -> int:
    """Load, unpack, write.

    Raises:
        PruningError: what the user can mend.
    """
    args = make_parser(prog).parse_args(argv)
    check_format(args.format)
    check_folders(args.input, args.output, EXPORTED, args.overwrite)
    model = from_pretrained(args.input)
    with replaced_folder(args.output, EXPORTED, args.overwrite) as half:
        write_export(model, half, format=args.format)
        copy_small_files(args.input, half)
    print(f"wrote {args.output} as {args.format}, {bytes_of_weights(args.output) / 2**20:.1f} MiB")  # noqa: T201
    return 0
