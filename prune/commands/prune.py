"""`trisparse prune`: a checkpoint pruned at once into another."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trisparse.prune.commands.folders import add_folders, add_overwrite, check_device, check_folders
from trisparse.prune.config.group import SCOPES
from trisparse.prune.deploy.checkpoint import check_shard_size, from_pretrained, write_pretrained
from trisparse.prune.deploy.compress_checkpoint import copy_small_files
from trisparse.prune.deploy.replaced_folder import SAVED, replaced_folder
from trisparse.prune.errors import PruningError, one_line
from trisparse.prune.one_shot.layer_by_layer import MAGNITUDE
from trisparse.prune.one_shot.layer_sparsity import OWL, OWL_LAMBDA, OWL_M
from trisparse.prune.one_shot.once import METHODS, RETRAIN_FREE, prune_once
from trisparse.prune.one_shot.sparsegpt import BLOCK_SIZE, DAMPENING
from trisparse.prune.one_shot.texts import SAMPLES
from trisparse.prune.parser import Parser, one_of


def make_parser(prog: str) -> Parser:
    """The command's flags."""
    parser = Parser(prog=prog, description="Prune a model at once, by a few texts or by magnitude.")
    add_folders(parser, "folder of a transformers model, or its name on the hub")
    what = parser.add_argument_group("what is pruned")
    what.add_argument("--pattern", required=True, metavar="PATTERN", help="2:4 say, or 1x1; magnitude takes any")
    what.add_argument(
        "--target_sparsity", type=float, metavar="X",
        help="share of the weights that goes; N:M says it itself",
    )  # fmt: skip
    names = "regular expressions, glob:… or class:…"
    what.add_argument("--op_names", nargs="+", metavar="NAME", help=f"layers to prune, by {names} (default: all)")
    what.add_argument("--excluded_op_names", nargs="+", metavar="NAME", help="layers to leave as they are, likewise")
    what.add_argument("--pruning_scope", **one_of(*SCOPES), help="magnitude: layers compete, or not (default: global)")
    how = parser.add_argument_group("how weights are chosen")
    methods = [name for name in METHODS if name != RETRAIN_FREE]  # which wants a loss
    how.add_argument("--method", **one_of(*methods), help="(default: wanda, which looks at --data, else magnitude)")
    how.add_argument("--layer_sparsity", **one_of(OWL), help="blocks with more outliers keep more")
    how.add_argument("--owl_m", type=float, default=OWL_M, metavar="X", help="times the mean that make an outlier")
    how.add_argument("--owl_lambda", type=float, default=OWL_LAMBDA, metavar="X", help="half the range of sparsities")
    how.add_argument("--dampening", type=float, default=DAMPENING, metavar="X", help="of sparsegpt")
    how.add_argument("--block_size", type=int, default=BLOCK_SIZE, metavar="N", help="of sparsegpt, in columns")
    data = parser.add_argument_group("texts to look at")
    data.add_argument(
        "--data", metavar="DATA",
        help="a file (.txt, .json, .jsonl, .csv, .tsv), a folder, or NAME[:CONFIG] of the hub",
    )  # fmt: skip
    data.add_argument("--column", metavar="NAME", help="of the texts, where the data has several")
    data.add_argument("--samples", type=int, default=SAMPLES, metavar="N", help="how many texts")
    data.add_argument(
        "--max_length",
        type=int,
        metavar="N",
        help="tokens of a text at most (default: 2048, or fewer if it takes no more)",
    )
    more = parser.add_argument_group("how it is loaded and written")
    more.add_argument(
        "--device", metavar="NAME",
        help="where blocks run, one at a time, such as cuda (default: where the model is, a CPU)",
    )  # fmt: skip
    more.add_argument("--dtype", **one_of("float32", "float16", "bfloat16"), help="convert to it first")
    more.add_argument("--max_shard_size", default="5GB", metavar="SIZE", help="of a file")
    add_overwrite(more)
    return parser


def main(argv: Sequence[str], prog: str) -> int:
    """Load, prune, print the report, save; nothing is written unless all goes well.

    Raises:
        PruningError: what `prune_once`, `from_pretrained` and `replaced_folder` raise it for, or a model or a
            tokenizer that can't be loaded.
    """
    args = make_parser(prog).parse_args(argv)
    check_folders(args.input, args.output, SAVED, args.overwrite)
    check_shard_size(args.max_shard_size)
    if args.device is not None:
        check_device(args.device)
    method = args.method or (MAGNITUDE if args.data is None else "wanda")
    if (method != MAGNITUDE or args.layer_sparsity == OWL) and args.data is None:
        raise PruningError(f"--data: missing; {args.layer_sparsity or method} prunes by what it sees of texts")
    source = _folder(args.input)
    model: Any = from_pretrained(source, **({"dtype": getattr(torch, args.dtype)} if args.dtype else {}))
    names = ("target_sparsity", "op_names", "excluded_op_names", "pruning_scope")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    report = prune_once(
        model.eval(), method, layer_sparsity=args.layer_sparsity, owl_m=args.owl_m,
        owl_lambda=args.owl_lambda, dampening=args.dampening, block_size=args.block_size, calibration=args.data,
        tokenizer=_tokenizer(source) if args.data is not None else None, samples=args.samples,
        max_length=args.max_length, column=args.column, device=args.device, progress=_say, pattern=args.pattern,
        **given,
    )  # fmt: skip
    with replaced_folder(args.output, SAVED, args.overwrite) as half:
        write_pretrained(model, half, args.max_shard_size)
        copy_small_files(source, half)
    print(f"pruned by {method}\n{report}")  # noqa: T201
    print(f"wrote {args.output}; trisparse compress makes it smaller and faster")  # noqa: T201
    return 0


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
