"""The command line of `trisparse-glue`: parsed and checked before anything heavy is imported."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from trisparse.prune.config.config import PruningConfig
from trisparse.prune.config.file import find_config
from trisparse.prune.config.group import SCHEDULE_KEYS
from trisparse.prune.errors import PruningError, nearest
from trisparse.prune.glue.recipe import recipe_flags
from trisparse.prune.glue.tasks import find_task

FORMATS = ("jsonl", "json", "csv", "tsv", "parquet")
DISTILL_MODES = ("hidden", "logits", "both")
SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
# the packages of which one is needed, and what installs it
TRACKERS = {
    "none": ((), ""),
    "tensorboard": (("tensorboard", "tensorboardX"), "'trisparse[tensorboard]'"),
    "wandb": (("wandb",), "wandb"),
}
OPTIMIZERS = ("adamw", "masked_adamw")
_HUGE = 10**9
_ANY_WINDOW = {"start_step": 1, "end_step": 10**9}  # stands in until the length of the data is known


def _arg(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class ModelArguments:
    """What is trained, and what it learns from."""

    recipe: str | None = _arg(None, "Flags of a published row by its name, or of a .yaml; a flag that is given wins.")
    model_name_or_path: str | None = _arg(None, "Folder or hub name of the model to train.")
    teacher_model_name_or_path: str | None = _arg(None, "Dense teacher; default: the model itself as it was loaded.")
    use_slow_tokenizer: bool = _arg(False, "Use the tokenizer that is not backed by Rust, where there is one.")
    distill_loss_weight: float = _arg(0.0, "Weight of the distillation loss; 0: labels alone, else no label loss.")
    distill_mode: str = _arg("hidden", "What is matched to the teacher: hidden, logits or both.")
    cache_teacher: bool = _arg(False, "Run the teacher once on every training example, and keep what it says.")


@dataclass
class DataArguments:
    """Where the data comes from, and how it is batched."""

    task_name: str | None = _arg(None, "A GLUE task: cola, mnli, mrpc, qnli, qqp, rte, sst2, stsb or wnli.")
    dataset_dir: str | None = _arg(None, "Folder with train and validation as .jsonl, .csv, .tsv or .parquet.")
    train_file: str | None = _arg(None, "Training file, instead of the one in dataset_dir.")
    validation_file: str | None = _arg(None, "Validation file, instead of the one in dataset_dir.")
    holdout_fraction: float = _arg(
        0.0, "Share of the training examples to hold out and evaluate on, in place of the validation set: for tuning."
    )
    max_length: int = _arg(128, "Tokens after which a text is cut.")
    pad_to_max_length: bool = _arg(False, "Pad to max_length, not to the longest text of the batch.")
    group_by_length: bool = _arg(False, "Batch texts of similar length together.")
    per_device_train_batch_size: int = _arg(8, "Texts a training batch.")
    per_device_eval_batch_size: int = _arg(8, "Texts an evaluation batch.")


@dataclass
class TrainingArguments:
    """How long and how fast."""

    output_dir: str | None = _arg(None, "Where the run is written.")
    overwrite_output_dir: bool = _arg(False, "Write over the run that output_dir holds.")
    optimizer: str = _arg("adamw", "adamw, or masked_adamw: AdamW that scores and masks in the same pass.")
    learning_rate: float = _arg(5e-5, "Peak learning rate of AdamW.")
    weight_decay: float = _arg(0.0, "Decay of all weights but biases and norms.")
    num_train_epochs: float | None = _arg(None, "Passes over the training data; default 3, or as max_train_steps says.")
    max_train_steps: int | None = _arg(None, "Optimizer steps, whatever the epochs.")
    gradient_accumulation_steps: int = _arg(1, "Batches an optimizer step.")
    lr_scheduler_type: str = _arg("linear", "Learning rate schedule, by its name in transformers.")
    num_warmup_steps: int = _arg(0, "Steps in which the learning rate rises.")
    seed: int = _arg(42, "Seed of everything random.")
    mixed_precision: str = _arg("no", "no, bf16 or fp16.")
    compile: bool = _arg(
        False, "Compile the model with torch.compile; on a GPU its kernels are replayed as CUDA graphs."
    )
    fsdp: bool = _arg(False, "Spread the weights over the processes, too, not only the batches (FSDP2).")
    resume_from_checkpoint: str | None = _arg(None, "Folder of the run to go on with, or its checkpoint.pt.")
    report_to: str = _arg("none", "none, tensorboard or wandb.")
    compress: str | None = _arg(None, "Leave the best model in compressed/, too, packed for speed here, or for memory.")
    push_to_hub: bool = _arg(False, "Upload the result.")
    hub_model_id: str | None = _arg(None, "Repository to upload to.")
    hub_token: str | None = _arg(None, "Token of the upload; default: the one you are logged in with.")


@dataclass
class PruningArguments:
    """What is pruned, and when."""

    do_prune: bool = _arg(False, "Prune while training.")
    pruning_config: str | None = _arg(None, "A .json or .yaml config of several groups, or a recipe's name.")
    pruning_pattern: str | None = _arg(None, "NxM, Nxchannel, channelxM, mha or N:M; default 4x1.")
    target_sparsity: float | None = _arg(None, "Fraction of weights that end as zero; default 0.9, for N:M 1 - N/M.")
    target_speedup: float | None = _arg(None, "Instead: times as fast as dense, compressed, on this machine.")
    target_bytes: float | None = _arg(
        None, "Instead: bytes of the compressed model, or their share of the dense one's."
    )
    target_flops: float | None = _arg(None, "Instead: share of the multiplications of linear layers that is left.")
    tokens: list[int] | None = _arg(  # noqa: RUF009 (no list is made)
        None, "Tokens in a batch that --target_speedup means; default 128 4096."
    )
    pruning_type: str | None = _arg(None, "Criterion, with _progressive behind it or not; default snip_momentum.")
    pruning_frequency: int | None = _arg(None, "Steps between events; -1, the default: a fortieth of the window.")
    sparsity_warm_epochs: float | None = _arg(None, "Epochs before pruning starts; default 0.")
    cooldown_epochs: float | None = _arg(None, "Epochs after pruning ends; default 0.")
    sparse_training: str | None = _arg(None, "Multiply what is kept alone, on CPUs: auto (default), on or off.")
    sparse_cooldown: bool = _arg(False, "Train 2:4 layers packed once masks are final, where that is faster.")


_GROUPS: Any = (ModelArguments, DataArguments, TrainingArguments, PruningArguments)


@dataclass(frozen=True)
class GlueArguments:
    """All arguments of a run, checked."""

    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    pruning: PruningArguments

    def to_dict(self) -> dict[str, Any]:
        """One flat mapping of flag to value, without the hub's token."""
        parts = (self.model, self.data, self.training, self.pruning)
        values = {key: value for part in parts for key, value in dataclasses.asdict(part).items()}
        del values["hub_token"]
        return values

    def unfelt_flags(self) -> list[str]:
        """Pruning flags that were given to a run that does not prune."""
        given = dataclasses.asdict(self.pruning)
        if given.pop("do_prune"):
            return []
        return [f"--{key}" for key, value in given.items() if value is not None and value is not False]

    def pruning_config(self, window: dict[str, int]) -> PruningConfig:
        """The config for a schedule window of `start_step`, `end_step`, `pruning_frequency`."""
        p = self.pruning
        if p.pruning_type == "pattern_lock":
            for name in (*SCHEDULE_KEYS[2:], "sparsity_warm_epochs", "cooldown_epochs"):
                if getattr(p, name) is not None:
                    raise PruningError(f"--{name}: pattern_lock holds from the first step; leave --{name} out")
        flags: dict[str, Any] = {"target_sparsity": p.target_sparsity, "pattern": p.pruning_pattern}
        flags |= {"pruning_type": p.pruning_type, "target_speedup": p.target_speedup, "target_flops": p.target_flops}
        flags |= {"target_bytes": int(p.target_bytes) if p.target_bytes and p.target_bytes > 1 else p.target_bytes}
        flags["tokens"] = p.tokens
        if p.pruning_frequency not in (None, -1):
            flags["pruning_frequency"] = window.get("pruning_frequency", p.pruning_frequency)
        if p.sparsity_warm_epochs is not None:
            flags["start_step"] = window["start_step"]
        if p.cooldown_epochs is not None:
            flags["end_step"] = window["end_step"]
        flags = {key: value for key, value in flags.items() if value is not None}
        defaults: dict[str, Any] = {"pruning_op_types": ["Linear"], **window}
        if p.pruning_config is None:
            if p.pruning_type == "pattern_lock":
                defaults = {"pruning_op_types": ["Linear"]}
            return PruningConfig(**{**defaults, **flags})
        return PruningConfig.load(find_config(p.pruning_config), defaults=defaults, **flags)


DEFAULTS = GlueArguments(ModelArguments(), DataArguments(), TrainingArguments(), PruningArguments()).to_dict()


def parse_arguments(argv: Sequence[str]) -> GlueArguments:
    """Parse and check the command line.

    Raises:
        PruningError: anything that can be seen to be wrong without data and model.
        SystemExit: after `--help`.
    """
    from transformers.hf_argparser import HfArgumentParser

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise PruningError(message)

        def _get_option_tuples(self, option_string: str) -> list:
            # --a_b and --a-b are one flag: a prefix of both is not ambiguous
            return list({id(match[0]): match for match in super()._get_option_tuples(option_string)}.values())

    def parse(words: Sequence[str]) -> Any:
        return parser.parse_args_into_dataclasses(list(words), return_remaining_strings=True, look_for_args_file=False)

    parser = Parser(_GROUPS, prog="trisparse-glue", description="Fine-tune, prune and distil on a GLUE task.")
    *groups, rest = parse(argv)
    if recipe := groups[0].recipe:
        argv = [*recipe_flags(recipe, _flag_names()), *argv]
        *groups, rest = parse(argv)
    if rest:
        known = nearest(rest[0].split("=")[0].lstrip("-"), _flag_names()).replace("'", "")
        raise PruningError(f"{rest[0]}: unknown argument{known.replace('mean ', 'mean --')}")
    args = GlueArguments(*groups)
    _check(args)
    if (unfelt := args.unfelt_flags()) and not any(re.match(r"--do[_-]p", word) for word in argv):
        raise PruningError(f"{unfelt[0]}: has no effect without --do_prune; add it, or --do_prune False to train dense")
    return args


def _flag_names() -> list[str]:
    return [f.name for group in _GROUPS for f in dataclasses.fields(group)]


def _check(args: GlueArguments) -> None:
    m, d, t = args.model, args.data, args.training
    d.task_name = find_task(d.task_name).name
    for name, value in (("model_name_or_path", m.model_name_or_path), ("output_dir", t.output_dir)):
        if not value:
            raise PruningError(f"--{name}: missing")
    for name, text, known in (
        ("distill_mode", m.distill_mode, DISTILL_MODES),
        ("optimizer", t.optimizer, OPTIMIZERS),
        ("lr_scheduler_type", t.lr_scheduler_type, SCHEDULERS),
        ("mixed_precision", t.mixed_precision, ("no", "bf16", "fp16")),
        ("report_to", t.report_to, tuple(TRACKERS)),
        ("sparse_training", args.pruning.sparse_training or "auto", ("auto", "on", "off")),
        ("compress", "speed" if t.compress is None else t.compress, ("speed", "memory")),
    ):
        if text not in known:
            raise PruningError(f"--{name}: {text!r} is not one of {', '.join(known)}{nearest(text, known)}")
    _check_numbers(args)
    _check_paths(d)
    if t.push_to_hub and not t.hub_model_id:
        raise PruningError("--push_to_hub: needs --hub_model_id, the repository to upload to")
    if t.compile and (t.fsdp or args.pruning.sparse_cooldown):
        other = "fsdp" if t.fsdp else "sparse_cooldown"
        raise PruningError(f"--compile: does not work together with --{other} yet; leave one out")
    if t.fsdp:
        for name, odd, instead in (
            ("optimizer", t.optimizer == "masked_adamw", "adamw"),
            ("mixed_precision", t.mixed_precision == "fp16", "bf16"),
            ("sparse_cooldown", args.pruning.sparse_cooldown, "no --fsdp"),
        ):
            if odd:
                raise PruningError(f"--fsdp: does not work with this --{name}; use {instead}")
    if t.optimizer == "masked_adamw" and not args.pruning.do_prune:
        raise PruningError("--optimizer: masked_adamw has no effect without --do_prune; use adamw")
    if m.teacher_model_name_or_path and not m.distill_loss_weight:
        raise PruningError(
            "--teacher_model_name_or_path: has no effect without --distill_loss_weight; add one, such as 2"
        )
    if d.task_name == "stsb" and m.distill_loss_weight and m.distill_mode != "hidden":
        raise PruningError(f"--distill_mode: {m.distill_mode!r} needs classes, and stsb has none; use hidden")
    if args.pruning.do_prune:
        config = args.pruning_config(dict(_ANY_WINDOW))
        if args.pruning.sparse_cooldown:
            _check_sparse_cooldown(args, config)


def _check_sparse_cooldown(args: GlueArguments, config: PruningConfig) -> None:
    p, precision = args.pruning, args.training.mixed_precision
    if p.sparse_training == "on":
        raise PruningError("--sparse_cooldown: its layers train packed, not with --sparse_training on; leave one out")
    if not any(group.pattern.is_24 or group.is_lock for group in config.groups):
        patterns = ", ".join(sorted({str(group.pattern) for group in config.groups}))
        raise PruningError(f"--sparse_cooldown: packs 2:4 layers, and the pattern is {patterns}; use 2:4")
    if precision == "no":
        raise PruningError(
            "--sparse_cooldown: sparse tensor cores multiply 16 bits; add --mixed_precision bf16 or fp16"
        )
    if p.pruning_type != "pattern_lock" and not p.cooldown_epochs:
        raise PruningError("--sparse_cooldown: there is no cool-down; add --cooldown_epochs")


def _check_numbers(args: GlueArguments) -> None:
    m, d, t, p = args.model, args.data, args.training, args.pruning
    for name, value, least in (
        ("max_length", d.max_length, 1),
        ("per_device_train_batch_size", d.per_device_train_batch_size, 1),
        ("per_device_eval_batch_size", d.per_device_eval_batch_size, 1),
        ("gradient_accumulation_steps", t.gradient_accumulation_steps, 1),
        ("max_train_steps", t.max_train_steps, 1),
        ("num_warmup_steps", t.num_warmup_steps, 0),
        ("weight_decay", t.weight_decay, 0),
        ("distill_loss_weight", m.distill_loss_weight, 0),
        ("sparsity_warm_epochs", p.sparsity_warm_epochs, 0),
        ("cooldown_epochs", p.cooldown_epochs, 0),
    ):
        if value is not None and not least <= value < _HUGE:
            raise PruningError(f"--{name}: want at least {least} and below {_HUGE:g}, got {value}")
    if not 0 <= t.seed < 2**32:
        raise PruningError(f"--seed: want a whole number from 0 up to but not 2**32, got {t.seed}")
    if not 0 <= d.holdout_fraction <= 0.5:
        raise PruningError(f"--holdout_fraction: want 0 to 0.5, got {d.holdout_fraction}")
    for name, number in (("learning_rate", t.learning_rate), ("num_train_epochs", t.num_train_epochs)):
        if number is not None and not 0 < number < _HUGE:
            raise PruningError(f"--{name}: want a number above 0 and below {_HUGE:g}, got {number}")
    if p.pruning_frequency is not None and p.pruning_frequency != -1 and p.pruning_frequency < 1:
        raise PruningError(f"--pruning_frequency: want at least 1, or -1 to have it chosen, got {p.pruning_frequency}")


def _check_paths(d: DataArguments) -> None:
    if d.dataset_dir is not None and not Path(d.dataset_dir).is_dir():
        raise PruningError(f"--dataset_dir: {d.dataset_dir} is no folder")
    if (d.train_file is None) != (d.validation_file is None) and d.dataset_dir is None:
        given, missing = ("train", "validation") if d.train_file else ("validation", "train")
        raise PruningError(f"--{given}_file: needs --{missing}_file or --dataset_dir beside it")
    for name, file in (("train_file", d.train_file), ("validation_file", d.validation_file)):
        if file is None:
            continue
        if not Path(file).is_file():
            raise PruningError(f"--{name}: {file} is no file")
        if not re.search(rf"\.({'|'.join(FORMATS)})$", file):
            raise PruningError(f"--{name}: {file} is not one of .{', .'.join(FORMATS)}")
