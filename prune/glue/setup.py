"""Everything a run is made of, before its first step."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from trisparse.prune.data.batches import EpochSampler, make_loader, tokenize
from trisparse.prune.data.own_task import task_of
from trisparse.prune.data.rows import Example
from trisparse.prune.data.splits import load_splits
from trisparse.prune.data.tasks import Task
from trisparse.prune.errors import PruningError
from trisparse.prune.glue.args import GlueArguments, TrainingArguments
from trisparse.prune.glue.checks import check_distillation
from trisparse.prune.glue.distill import Teacher
from trisparse.prune.glue.models import check_capacity, load_models
from trisparse.prune.glue.output import check_output_dir, create_output_dir
from trisparse.prune.glue.plan import Plan, make_plan
from trisparse.prune.glue.ranks import shard
from trisparse.prune.glue.slow_halves import slow_halves
from trisparse.prune.glue.sparse_cooldown import SparseCooldown
from trisparse.prune.glue.teacher_cache import TeacherCache
from trisparse.prune.glue.trackers import check_tracker
from trisparse.prune.glue.versions import versions
from trisparse.prune.pruner.masked_adamw import MaskedAdamW
from trisparse.prune.pruner.pruner import Pruner

_BUCKET = 16  # tokens; a compiled model has a graph for each length
_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Setup:
    """A run, ready to start.

    `bare` is the model inside `model`'s wrappers, `pruner` is None for a dense run, `cooldown` without
    --sparse_cooldown, `data` a digest of the examples, `notes` what the user should know of this machine,
    `versions` those that the run begins with.
    """

    args: GlueArguments
    task: Task
    folder: Path
    accelerator: Accelerator
    bare: Any
    model: nn.Module
    optimizer: Any
    tokenizer: Any
    teacher: Teacher | None
    pruner: Pruner | None
    cooldown: SparseCooldown | None
    train_loader: DataLoader
    sampler: EpochSampler
    validation: dict[str, DataLoader]
    plan: Plan
    data: str
    notes: list[str]
    versions: dict[str, str]


def set_up(args: GlueArguments) -> Setup:
    """Load data and models, check them against each other, and only then touch the output folder.

    Raises:
        PruningError: whatever the user can mend.
    """
    d, t = args.data, args.training
    task = task_of(d)
    check_distillation(args, task)
    folder = check_output_dir(args)
    splits = load_splits(d, task)
    accelerator = _accelerator(t)
    set_seed(t.seed)
    bare, teacher_model, tokenizer = load_models(args.model, task)

    features = {name: tokenize(rows, task, tokenizer, d.max_length) for name, rows in splits.items()}
    all_rows = list(features.values())
    digest = hashlib.sha256(json.dumps(features).encode()).hexdigest()
    train = features.pop("train")
    lengths = [len(row["input_ids"]) for row in train]
    examples = d.per_device_train_batch_size * accelerator.num_processes  # the same order, however they are spread
    sampler = EpochSampler(lengths, t.seed, examples, d.group_by_length)
    if not args.model.trains_head:
        freeze_head(bare)
    if t.fsdp:
        shard(bare, accelerator.device)
    made = make_optimizer(bare, t.optimizer, t.learning_rate, t.weight_decay, args.pruning.do_prune)
    multiple = _BUCKET if t.compile else None
    loader = make_loader(train, tokenizer, d, d.per_device_train_batch_size, sampler, multiple)
    if t.fsdp:
        model, (optimizer, train_loader) = bare, accelerator.prepare(made, loader)
    else:
        model, optimizer, train_loader = accelerator.prepare(bare, made, loader)
    if t.compile:
        compile_model(bare, accelerator.device, t.gradient_accumulation_steps > 1)
    if accelerator.num_processes > 1:
        set_seed(t.seed, device_specific=True)  # other dropout on each process; the weights are the same by now
    evaluation = d.per_device_eval_batch_size
    validation = {
        name: accelerator.prepare(make_loader(rows, tokenizer, d, evaluation, multiple=multiple))
        for name, rows in features.items()
    }
    plan = make_plan(args, len(train_loader))
    pruner = make_pruner(args, bare, model, plan) if plan.window is not None else None
    cooldown = None
    if pruner is not None and args.pruning.sparse_cooldown:
        length = d.max_length if d.pad_to_max_length else sum(lengths) // len(lengths)
        cooldown = SparseCooldown(bare, pruner, d.per_device_train_batch_size * length, _HALVES[t.mixed_precision])

    if not any(row["input_ids"] for rows in all_rows for row in rows):
        raise PruningError("--model_name_or_path: its tokenizer makes no token of any text")
    longest = d.max_length if d.pad_to_max_length else max(len(row["input_ids"]) for rows in all_rows for row in rows)
    longest += -longest % (multiple or 1)
    tokens = max(max(row["input_ids"], default=0) for rows in all_rows for row in rows)
    check_capacity("model_name_or_path", bare, longest, tokens)
    if teacher_model is not None:
        check_capacity("teacher_model_name_or_path", teacher_model, longest, tokens)
    create_output_dir(folder)
    teacher = None
    if teacher_model is not None:
        teacher = Teacher(teacher_model.to(accelerator.device), args.model.distill_mode)
        if t.compile:
            compile_model(teacher_model, accelerator.device, t.gradient_accumulation_steps > 1)
        if args.model.cache_teacher:
            fill_cache(teacher, train, tokenizer, args, accelerator, folder)
    return Setup(
        args, task, folder, accelerator, bare, model, optimizer, tokenizer, teacher, pruner, cooldown, train_loader,
        sampler, validation, plan, digest, slow_halves(t.mixed_precision, accelerator.device),
        versions(),
    )  # fmt: skip


def fill_cache(
    teacher: Teacher, train: list[Example], tokenizer: Any, args: GlueArguments, accelerator: Accelerator, folder: Path
) -> None:
    """Run the teacher once on every training example, on each process."""
    by_length = sorted(train, key=lambda row: len(row["input_ids"]))
    loader = make_loader(by_length, tokenizer, args.data, args.data.per_device_eval_batch_size)
    bar = tqdm(loader, desc="teacher", unit="batch", disable=not accelerator.is_main_process)
    cache = TeacherCache([len(row["input_ids"]) for row in train], accelerator.device, folder)
    with accelerator.autocast():
        teacher.fill(cache, ({k: v.to(accelerator.device) for k, v in batch.items()} for batch in bar))
    if cache.is_on_disk:
        accelerator.print("teacher: its outputs would fill more than half of the free memory; they are kept on disk")


def compile_model(model: nn.Module, device: torch.device, accumulates: bool, backend: str = "inductor") -> None:
    """Compile a model in place; one graph takes all lengths, and on CUDA each length is recorded once and replayed.

    Not replayed where gradients accumulate: those of one batch would lie where the next replay writes (PyTorch issue
    169545).
    """
    is_replayed = device.type == "cuda" and backend == "inductor" and not accumulates
    mode = "reduce-overhead" if is_replayed else None
    model.compile(dynamic=True, backend=backend, mode=mode)


def freeze_head(model: Any) -> None:
    """Pooler and head get no gradient when hidden states alone are matched; data parallelism would wait for one."""
    inside = {id(p) for p in model.base_model.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in inside or "pooler" in name.split("."):
            parameter.requires_grad_(False)


def make_optimizer(model: nn.Module, name: str, lr: float, weight_decay: float, prunes: bool) -> torch.optim.AdamW:
    """The named AdamW with every trainable parameter in exactly one group; vectors (biases, norms) do not decay.

    With pruning the betas are (0.9, 0.9): the second moment forgets as fast as the scores do.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    betas = (0.9, 0.9) if prunes else (0.9, 0.999)
    if name == "masked_adamw":
        return MaskedAdamW(groups, lr=lr, betas=betas)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def make_pruner(args: GlueArguments, bare: Any, model: nn.Module, plan: Plan) -> Pruner:
    """Prune inside the base model only, and never the pooler: under distillation neither it nor the head may change."""
    assert plan.window is not None
    outside = [rf"^(?!{bare.base_model_prefix}\.)"] if bare.base_model is not bare else []
    config = args.pruning_config(plan.window, says=PartialState().is_main_process)
    config = config.in_steps(plan.total_steps).excluding(*outside, r"(^|\.)pooler(\.|$)")
    sparse_training = "off" if args.pruning.sparse_cooldown else args.pruning.sparse_training or "auto"
    return Pruner(model, config, sparse_training=sparse_training)


def _accelerator(t: TrainingArguments) -> Accelerator:
    tracker = check_tracker(t.report_to)
    try:
        accelerator = Accelerator(
            gradient_accumulation_steps=t.gradient_accumulation_steps,
            mixed_precision=t.mixed_precision,
            log_with=tracker,
            project_dir=t.output_dir if tracker else None,
            dataloader_config=DataLoaderConfiguration(non_blocking=True),
            cpu=not torch.accelerator.is_available(),  # or processes on CPUs would not find each other
        )
    except ValueError as error:
        raise PruningError(f"--mixed_precision: {t.mixed_precision}: {str(error).splitlines()[0]}") from None
    if t.fsdp and accelerator.num_processes == 1:
        raise PruningError("--fsdp: there is one process; launch several with torchrun or accelerate launch")
    return accelerator
