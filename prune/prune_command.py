"""`trisparse prune`: a checkpoint pruned at once into another."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from trisparse.prune.deploy.checkpoint import from_pretrained, write_pretrained
from trisparse.prune.deploy.compress_checkpoint import copy_small_files
from trisparse.prune.deploy.replaced_folder import SAVED, replaced_folder
from trisparse.prune.errors import PruningError, one_line
from trisparse.prune.one_shot.layer_by_layer import MAGNITUDE
from trisparse.prune.one_shot.layer_sparsity import OWL, OWL_LAMBDA, OWL_M
from trisparse.prune.one_shot.once import METHODS, RETRAIN_FREE, prune_once
from trisparse.prune.one_shot.sparsegpt import BLOCK_SIZE, DAMPENING
from trisparse.prune.one_shot.texts import SAMPLES


def add_prune(commands: Any) -> None:
    """Add the subcommand to a parser's."""
    add = commands.add_parser("prune", help="prune a model at once, by a few texts or by magnitude")
    add.add_argument("input", metavar="MODEL", type=Path, help="folder of a transformers model, or its name on the hub")
    add.add_argument("output", metavar="OUT", type=Path, help="folder to write")
    add.add_argument("--method", choices=[name for name in METHODS if name != RETRAIN_FREE], default="wanda")
    add.add_argument("--pattern", required=True, help="2:4 say, or 1x1; magnitude takes any")
    add.add_argument("--target_sparsity", type=float, help="share of the weights that goes; N:M says it itself")
    add.add_argument("--layer_sparsity", choices=[OWL], help="blocks with more outliers keep more")
    add.add_argument("--owl_m", type=float, default=OWL_M, help="times the mean that make an outlier")
    add.add_argument("--owl_lambda", type=float, default=OWL_LAMBDA, help="half the range of sparsities")
    add.add_argument("--dampening", type=float, default=DAMPENING, help="of sparsegpt")
    add.add_argument("--block_size", type=int, default=BLOCK_SIZE, help="of sparsegpt")
    add.add_argument("--excluded_op_names", nargs="+", metavar="REGEX", help="layers to leave as they are")
    add.add_argument(
        "--data", help="texts: a file (.txt, .json, .jsonl, .csv, .tsv), a folder, or NAME[:CONFIG] of the hub"
    )
    add.add_argument("--column", help="of the texts, where the data has several")
    add.add_argument("--samples", type=int, default=SAMPLES, help="how many texts")
    add.add_argument("--max_length", type=int, help="tokens of a text at most")
    add.add_argument(
        "--device", help="where blocks run, one at a time, such as cuda; default: where the model is, a CPU"
    )
    add.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="convert to it first")
    add.add_argument("--max_shard_size", default="5GB", help="of a file")
    add.add_argument("--overwrite", action="store_true", help="replace what something else wrote to the output")


def prune(args: argparse.Namespace) -> None:
    """Load, prune, print the report, save; nothing is written unless all goes well.

    Raises:
        PruningError: what `prune_once`, `from_pretrained` and `replaced_folder` raise it for, or a model or a
            tokenizer that can't be loaded.
    """
    looks = args.method != MAGNITUDE or args.layer_sparsity == OWL
    if looks and args.data is None:
        raise PruningError(f"--data: missing; {args.method} prunes by what it sees of texts")
    source = _folder(args.input)
    model: Any = from_pretrained(source, **({"dtype": getattr(torch, args.dtype)} if args.dtype else {}))
    given = {"target_sparsity": args.target_sparsity, "excluded_op_names": args.excluded_op_names}
    report = prune_once(
        model.eval(), args.method, layer_sparsity=args.layer_sparsity, owl_m=args.owl_m,
        owl_lambda=args.owl_lambda, dampening=args.dampening, block_size=args.block_size, calibration=args.data,
        tokenizer=_tokenizer(source) if args.data is not None else None, samples=args.samples,
        max_length=args.max_length, column=args.column, device=args.device, progress=_say, pattern=args.pattern,
        **{name: value for name, value in given.items() if value is not None},
    )  # fmt: skip
    with replaced_folder(args.output, SAVED, args.overwrite) as half:
        write_pretrained(model, half, args.max_shard_size)
        copy_small_files(source, half)
    print(report)  # noqa: T201
    print(f"wrote {args.output}; trisparse compress makes it smaller and faster")  # noqa: T201


def _folder(model: Path) -> Path:
    """Where the files of a model are, fetched from the hub if no folder has its name."""
    name = str(model)
    if model.exists() or model.is_absolute() or name.count("/") > 1 or name.startswith("."):
        return model
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, ignore_patterns=["*.h5", "*.msgpack", "*.onnx", "*.ot", "*.gguf"]))
    except Exception as error:  # of the network, the name, the rights to it
        raise PruningError(f"{name}: is no folder, and can't be had from the hub: {one_line(error)}") from None


def _tokenizer(source: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source)
    except Exception as error:  # whatever the files of a tokenizer make it raise
        raise PruningError(f"{source}: its tokenizer can't be loaded: {one_line(error)}") from None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201
