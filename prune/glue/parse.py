"""The command line of `trisparse train`: parsed and checked before anything heavy is imported."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trisparse.prune.data.tasks import find_task
from trisparse.prune.errors import PruningError
from trisparse.prune.glue.args import GROUPS, GlueArguments
from trisparse.prune.glue.checks import check
from trisparse.prune.glue.recipe import recipe_flags, recipe_lines
from trisparse.prune.parser import Parser, unknown_argument

_SHOWN = {int: "N", float: "X"}  # a value in help
_TRAIN = "trisparse train"
_RECIPES = "recipes, files of flags for --recipe; those of BERT-mini and DistilBERT are neural-compressor's:"


def parse_arguments(argv: Sequence[str], prog: str = _TRAIN) -> GlueArguments:
    """Parse and check a command line; a folder that was not given is `default_output_dir`.

    Raises:
        PruningError: anything that can be seen to be wrong without data and model.
        SystemExit: after `--help`.
    """
    parser = make_parser(prog)

    def parse(words: Sequence[str]) -> Any:
        return parser.parse_args_into_dataclasses(list(words), return_remaining_strings=True, look_for_args_file=False)

    *groups, rest = parse(argv)
    if recipe := groups[0].recipe:
        argv = [*recipe_flags(recipe, flag_names()), *argv]
        *groups, rest = parse(argv)
    if rest:
        raise PruningError(unknown_argument(rest[0], [f"--{name}" for name in flag_names()]))
    args = GlueArguments(*groups)
    if args.data.task_name is not None:
        args.data.task_name = find_task(args.data.task_name).name
    check(args)
    if (unfelt := args.unfelt_flags()) and not any(re.match(r"--do[_-]p", word) for word in argv):
        raise PruningError(f"{unfelt[0]}: has no effect without --do_prune; add it, or --do_prune False to train dense")
    args.training.output_dir = args.training.output_dir or default_output_dir(args)
    return args


def make_parser(prog: str = _TRAIN) -> Any:
    """A parser of all flags, from the dataclasses that hold them."""
    from transformers.hf_argparser import HfArgumentParser

    class Flags(Parser, HfArgumentParser):
        def _get_option_tuples(self, option_string: str) -> list:
            # --a_b and --a-b are one flag: a prefix of both is not ambiguous
            matches: dict[int, Any] = {}
            for match in super()._get_option_tuples(option_string):
                matches.setdefault(id(match[0]), match)
            return list(matches.values())

    parser = Flags(
        GROUPS, prog=prog, usage=f"{prog} --model_name_or_path MODEL --task_name TASK [--do_prune] [other flags]",
        description="Fine-tune, prune and distil a model on a GLUE task, or on files of your own.",
        epilog="\n".join([_RECIPES, *recipe_lines()]),
    )  # fmt: skip
    for action in parser._actions:
        if action.nargs == "?":  # a flag that may be given false
            action.metavar = "true|false"
        elif action.metavar is None and action.type in _SHOWN:
            action.metavar = _SHOWN[action.type]
    return parser


def default_output_dir(args: GlueArguments) -> str:
    """`runs/TASK-PATTERN`, or the folder of the checkpoint that is gone on from."""
    p, d = args.pruning, args.data
    if given := args.training.resume_from_checkpoint:
        return given if Path(given).is_dir() else str(Path(given).parent)
    pattern = "dense"
    if p.do_prune:
        pattern = Path(p.pruning_config).stem if p.pruning_config else p.pruning_pattern or "4x1"
    return str(Path("runs", f"{d.task_name or d.own_name}-{pattern.replace(':', '-')}"))


def flag_names() -> list[str]:
    """Without the dashes, in the order of help."""
    return [f.name for group in GROUPS for f in dataclasses.fields(group)]
