"""What the flags of `trisparse train` must be, as far as it shows without data and model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from trisparse.prune.config.config import PruningConfig
from trisparse.prune.data.arguments import FORMATS, DataArguments
from trisparse.prune.data.tasks import TASKS, Task, find_task
from trisparse.prune.errors import PruningError
from trisparse.prune.glue.args import CHOICES, GlueArguments
from trisparse.prune.parser import not_one_of

_HUGE = 10**9
_ANY_WINDOW: dict[str, Any] = {"start_step": 1, "end_step": 1.0}  # stands in until the length of the data is known


def check(args: GlueArguments) -> None:
    """Raise PruningError for what can be seen to be wrong without data and model."""
    if not args.model.model_name_or_path:
        raise PruningError("--model_name_or_path: missing")
    for name, known in CHOICES.items():
        value = args.to_dict()[name]
        if value is not None and value not in known:
            raise PruningError(f"--{name}: {not_one_of(value, known)}")
    _check_numbers(args)
    _check_paths(args.data)
    _check_together(args)


def _check_together(args: GlueArguments) -> None:
    m, d, t = args.model, args.data, args.training
    for name, value in args.to_dict().items():
        if value == "":  # such as a variable of a shell that is not set
            raise PruningError(f"--{name}: is empty; give a value, or leave it out")
    if m.cache_teacher and not m.distill_loss_weight:
        raise PruningError("--cache_teacher: has no effect without --distill_loss_weight; leave it out")
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
    if m.label_loss_weight and not m.distill_loss_weight:
        raise PruningError(
            "--label_loss_weight: has no effect without --distill_loss_weight, for labels are then all there is to "
            "learn from; leave it out"
        )
    if d.task_name is not None:
        check_distillation(args, find_task(d.task_name))
    if args.pruning.do_prune:
        config = args.pruning_config(dict(_ANY_WINDOW))
        if args.pruning.sparse_cooldown:
            _check_sparse_cooldown(args, config)


def check_distillation(args: GlueArguments, task: Task) -> None:
    """Raise PruningError for a regression's logits: they are no classes."""
    m = args.model
    if task.is_regression and m.distill_loss_weight and m.distill_mode != "hidden":
        raise PruningError(f"--distill_mode: {m.distill_mode!r} needs classes, and {task.name} has none; use hidden")


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
        ("label_loss_weight", m.label_loss_weight, 0),
        ("sparsity_warm_epochs", p.sparsity_warm_epochs, 0),
        ("cooldown_epochs", p.cooldown_epochs, 0),
    ):
        if value is not None and not least <= value < _HUGE:
            raise PruningError(f"--{name}: want at least {least} and below {_HUGE:g}, got {value}")
    if m.dropout is not None and not 0 <= m.dropout < 1:
        raise PruningError(f"--dropout: want at least 0 and below 1, got {m.dropout}")
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
    if d.task_name is None and d.dataset_dir is None and d.train_file is None and d.validation_file is None:
        raise PruningError(
            f"--task_name: missing; want one of {', '.join(TASKS)}, or --train_file and --validation_file of your own"
        )
    if d.dataset_dir is not None and not Path(d.dataset_dir).is_dir():
        raise PruningError(f"--dataset_dir: {d.dataset_dir} is no folder")
    if d.holdout_fraction and d.validation_file:
        raise PruningError("--validation_file: has no effect with --holdout_fraction; leave one out")
    has_validation = d.validation_file is not None or d.holdout_fraction > 0
    if (d.train_file is not None) != has_validation and d.dataset_dir is None and (d.train_file or d.validation_file):
        given, missing = ("train", "validation") if d.train_file else ("validation", "train")
        raise PruningError(f"--{given}_file: needs --{missing}_file or --dataset_dir beside it")
    for name, file in (("train_file", d.train_file), ("validation_file", d.validation_file)):
        if file is None:
            continue
        if not Path(file).is_file():
            raise PruningError(f"--{name}: {file} is no file")
        if not re.search(rf"\.({'|'.join(FORMATS)})$", file):
            raise PruningError(f"--{name}: {file} is not one of .{', .'.join(FORMATS)}")
