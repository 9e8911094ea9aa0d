"""The console script `trisparse`: prune, compress, inspect and export models, show runs, sweep budgets."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from trisparse.prune.deploy.checkpoint import check_shard_size, from_pretrained
from trisparse.prune.deploy.checkpoint_files import read_config, weight_files
from trisparse.prune.deploy.compress_checkpoint import compress_checkpoint, copy_small_files, small_files
from trisparse.prune.deploy.export import FORMATS, check_format, write_export
from trisparse.prune.deploy.inspection import TOKENS, dense_rows, packed_rows
from trisparse.prune.deploy.layer_spec import is_ours
from trisparse.prune.deploy.onnx_export import ONNX
from trisparse.prune.deploy.replaced_folder import EXPORTED, SAVED, check_folder_is_free, replaced_folder
from trisparse.prune.errors import PruningError, one_line
from trisparse.prune.glue.sweep import add_sweep, sweep
from trisparse.prune.prune_command import add_prune, prune
from trisparse.prune.run_report.page import add_report, report


def main(argv: Sequence[str]) -> int:
    """Run one of them; the exit status is 2 for what the user can mend."""
    parser = argparse.ArgumentParser(prog="trisparse", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add_prune(commands)
    add = commands.add_parser("compress", help="choose a format for every layer of a pruned model")
    add.add_argument("input", type=Path, help="folder of a transformers model")
    add.add_argument("output", type=Path, help="folder to write")
    add.add_argument("--prefer", choices=["speed", "memory"], default="speed")
    add.add_argument("--tokens", type=int, nargs="+", default=[1, 4096], help="numbers of tokens that matter")
    add.add_argument("--no_measure", action="store_true", help="trust a static model instead of timing layers")
    add.add_argument("--keep_channels", action="store_true", help="remove no channels and heads")
    add.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="convert to it first")
    add.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="to measure on")
    add.add_argument("--max_shard_size", default="5GB", help="of a file")
    add.add_argument("--overwrite", action="store_true", help="replace what something else wrote to the output")
    look = commands.add_parser("inspect", help="what a checkpoint holds, and whether its files are whole")
    look.add_argument("folder", type=Path)
    out = commands.add_parser("export", help="write a compressed model for programs without trisparse")
    out.add_argument("input", type=Path)
    out.add_argument("output", type=Path)
    out.add_argument("--format", required=True, help=f"{' or '.join(FORMATS)}")
    out.add_argument("--overwrite", action="store_true", help="replace what something else wrote to the output")
    add_report(commands)
    add_sweep(commands)
    args, rest = parser.parse_known_args(argv)
    if rest and args.command != "sweep":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    runs: dict[str, Callable[[argparse.Namespace], None]] = {
        "prune": _prune, "compress": _compress, "inspect": _inspect, "export": _export, "report": report,
        "sweep": lambda args: sweep(args, rest),
    }  # fmt: skip
    try:
        runs[args.command](args)
    except BrokenPipeError:  # whoever read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (PruningError, OSError) as error:  # an OSError names its file
        print(f"trisparse: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def _prune(args: argparse.Namespace) -> None:
    _check_folders(args, SAVED)
    check_shard_size(args.max_shard_size)
    if args.device is not None:
        _check_device(args.device)
    prune(args)


def _compress(args: argparse.Namespace) -> None:
    _check_folders(args, SAVED)
    check_shard_size(args.max_shard_size)
    _check_device(args.device)
    model: Any = from_pretrained(args.input, **({"dtype": getattr(torch, args.dtype)} if args.dtype else {}))
    report = compress_checkpoint(
        model.to(args.device), args.input, args.output, args.prefer, args.tokens, measure=not args.no_measure,
        remove_channels=not args.keep_channels, max_shard_size=args.max_shard_size, overwrite=args.overwrite,
    )  # fmt: skip
    head, *rows = report.table()
    _print_table(head, rows)
    before, after = (_bytes_of_files(folder) for folder in (args.input, args.output))
    print(f"{report.summary()}; files {before / 2**20:.1f} MiB before, {after / 2**20:.1f} MiB after")  # noqa: T201


def _export(args: argparse.Namespace) -> None:
    check_format(args.format)
    _check_folders(args, EXPORTED)
    model = from_pretrained(args.input)
    with replaced_folder(args.output, EXPORTED, args.overwrite) as half:
        write_export(model, half, format=args.format)
        copy_small_files(args.input, half)
    print(f"wrote {args.output} as {args.format}, {_bytes_of_files(args.output) / 2**20:.1f} MiB")  # noqa: T201


def _bytes_of_files(folder: Path) -> int:
    """Of the weights; ONNX and older checkpoints have them in files of their own kind."""
    others = [*folder.glob("pytorch_model*.bin"), *folder.glob(f"{ONNX}*")]
    found = weight_files(folder) if list(folder.glob("*.safetensors")) or not others else others
    return sum(path.stat().st_size for path in found)


def _check_folders(args: argparse.Namespace, by: str) -> None:
    source, target = args.input, args.output
    if source.resolve() == target.resolve():
        raise PruningError(f"output: want another folder than the input, got {target}")
    there = next(path for path in (target, *target.absolute().parents) if path.exists())
    if not there.is_dir():
        raise PruningError(f"output: want a folder, but {there} is a file")
    copied = [path.name for path in small_files(source)] if source.is_dir() else []
    check_folder_is_free(target, by, args.overwrite, copied)


def _check_device(name: str) -> None:
    try:
        is_meta = torch.zeros(1, device=name).is_meta
    except (RuntimeError, AssertionError, ValueError) as error:  # torch without CUDA asserts
        raise PruningError(f"device: {name!r} can't be used: {one_line(error)}") from None
    if is_meta:
        raise PruningError("device: want one that computes, got 'meta'")


def _inspect(args: argparse.Namespace) -> None:
    config = read_config(args.folder)
    is_packed = is_ours(config.get("quantization_config"))
    rows = packed_rows(args.folder) if is_packed else dense_rows(args.folder)
    head = ["layer", "shape", "format", "stored", "KiB", "of dense", f"CPU, {' / '.join(map(str, TOKENS))} tokens", ""]
    _print_table(head, [row.cells() for row in rows])
    files = weight_files(args.folder)
    size = sum(path.stat().st_size for path in files) / 2**20
    state = "whole" if is_packed and config["quantization_config"].get("files") else "readable"
    print(f"{len(files)} files, {size:.1f} MiB, {state}; {len(rows)} layers")  # noqa: T201


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, title in enumerate(head):
        table.add_column(title, justify="left" if index in (0, len(head) - 1) else "right", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a file or a pipe has no edge to wrap at
    console.print(table)
