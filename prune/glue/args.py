"""The flags of `trisparse train`: names, defaults, and what help says of them."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trisparse.prune.config.config import PruningConfig
from trisparse.prune.config.file import find_config
from trisparse.prune.config.group import SCHEDULE_KEYS
from trisparse.prune.errors import PruningError
from trisparse.prune.glue.tasks import TASKS

FORMATS = ("jsonl", "json", "csv", "tsv", "parquet")
# the packages of which one is needed, and what installs it
TRACKERS = {
    "none": ((), ""),
    "tensorboard": (("tensorboard", "tensorboardX"), "'trisparse[tensorboard]'"),
    "wandb": (("wandb",), "wandb"),
}
# of flags that take one of some words
CHOICES = {
    "distill_mode": ("hidden", "logits", "both"),
    "optimizer": ("adamw", "masked_adamw"),
    "lr_scheduler_type": ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"),
    "mixed_precision": ("no", "bf16", "fp16"),
    "report_to": tuple(TRACKERS),
    "pruning_scope": ("global", "local"),
    "sparse_training": ("auto", "on", "off"),
    "compress": ("speed", "memory"),
}


def _arg(default: Any, help: str, shown: str | None = None) -> Any:
    """A flag; `shown` stands for its value in help."""
    return field(default=default, metadata={"help": help} | ({"metavar": shown} if shown else {}))


def _one_of(name: str, default: str | None, help: str) -> Any:
    return _arg(default, help, f"{{{','.join(CHOICES[name])}}}")


@dataclass
class ModelArguments:
    """What is trained, and what it learns from."""

    _argument_group_name = "the model, and what it learns from"

    recipe: str | None = _arg(None, "flags of a recipe below, or of a .yaml; a flag that is given wins", "NAME")
    model_name_or_path: str | None = _arg(None, "folder or hub name of the model to train", "MODEL")
    teacher_model_name_or_path: str | None = _arg(
        None, "dense teacher (default: the model itself as it was loaded)", "MODEL"
    )
    use_slow_tokenizer: bool = _arg(False, "use the tokenizer that is not backed by Rust, where there is one")
    distill_loss_weight: float = _arg(
        0.0, "weight of the distillation loss, which takes the place of the labels'; 0 for labels alone"
    )
    distill_mode: str = _one_of("distill_mode", "hidden", "what is matched to the teacher")
    dropout: float | None = _arg(None, "every dropout probability of the model as it trains (default: its own)", "P")
    label_loss_weight: float = _arg(0.0, "weight of the labels' loss beside the distillation loss")
    cache_teacher: bool = _arg(False, "run the teacher once on every training example, and keep what it says")

    @property
    def trains_head(self) -> bool:
        """Whether some loss reaches the classification head: that of hidden states does not."""
        return not self.distill_loss_weight or self.distill_mode != "hidden" or self.label_loss_weight > 0


@dataclass
class DataArguments:
    """Where the data comes from, and how it is batched."""

    _argument_group_name = "the data"

    task_name: str | None = _arg(None, "a GLUE task; without one, files of your own", f"{{{','.join(TASKS)}}}")
    dataset_dir: str | None = _arg(None, f"folder with train and validation, each as .{', .'.join(FORMATS)}", "DIR")
    train_file: str | None = _arg(
        None, "training file; without --task_name: text in sentence1 and sentence2, or in the first one or two columns "
        "of text, and words or numbers in label; a label with a decimal point makes it a regression", "FILE",
    )  # fmt: skip
    validation_file: str | None = _arg(None, "validation file, with the same columns", "FILE")
    holdout_fraction: float = _arg(
        0.0, "share of the training examples to hold out and evaluate on, in place of the validation set: for tuning"
    )
    max_length: int = _arg(128, "tokens after which a text is cut")
    pad_to_max_length: bool = _arg(False, "pad to max_length, not to the longest text of the batch")
    group_by_length: bool = _arg(False, "batch texts of similar length together")
    per_device_train_batch_size: int = _arg(8, "texts in a training batch")
    per_device_eval_batch_size: int = _arg(8, "texts in an evaluation batch")

    @property
    def own_name(self) -> str:
        """What data of one's own is called: its folder, or the training file, unless that has its usual name."""
        if self.train_file is None:
            return Path(self.dataset_dir or "").resolve().name
        path = Path(self.train_file).resolve()
        return path.parent.name if path.stem in ("train", "training") else path.stem


@dataclass
class TrainingArguments:
    """How long and how fast."""

    _argument_group_name = "the run"

    output_dir: str | None = _arg(None, "where the run is written (default: runs/TASK-PATTERN)", "DIR")
    overwrite_output_dir: bool = _arg(False, "write over the run that output_dir holds")
    resume_from_checkpoint: str | None = _arg(None, "folder of the run to go on with, or its checkpoint.pt", "DIR")
    optimizer: str = _one_of("optimizer", "adamw", "masked_adamw is AdamW that scores and masks in the same pass")
    learning_rate: float = _arg(5e-5, "peak learning rate")
    weight_decay: float = _arg(0.0, "decay of all weights but biases and norms")
    num_train_epochs: float | None = _arg(
        None, "passes over the training data (default: 3, or as max_train_steps says)"
    )
    max_train_steps: int | None = _arg(None, "optimizer steps, whatever the epochs")
    gradient_accumulation_steps: int = _arg(1, "batches in an optimizer step")
    lr_scheduler_type: str = _one_of("lr_scheduler_type", "linear", "learning rate schedule")
    num_warmup_steps: int = _arg(0, "steps in which the learning rate rises")
    seed: int = _arg(42, "seed of everything random")
    mixed_precision: str = _one_of("mixed_precision", "no", "what matrices are multiplied in")
    compile: bool = _arg(
        False, "compile the model with torch.compile; on a GPU its kernels are replayed as CUDA graphs"
    )
    fsdp: bool = _arg(False, "spread the weights over the processes, too, not only the batches (FSDP2)")
    report_to: str = _one_of("report_to", "none", "where the run is logged")
    compress: str | None = _one_of(
        "compress", None, "leave the best model in compressed/, too, packed for one of these"
    )
    push_to_hub: bool = _arg(False, "upload the result")
    hub_model_id: str | None = _arg(None, "repository to upload to", "NAME")
    hub_token: str | None = _arg(None, "token of the upload (default: the one you are logged in with)", "TOKEN")


@dataclass
class PruningArguments:
    """What is pruned, and when."""

    _argument_group_name = "what is pruned, and when"

    do_prune: bool = _arg(False, "prune while training; the flags below need it")
    pruning_config: str | None = _arg(
        None, "config of several groups, a .json or .yaml, neural-compressor's too; or mixed, which is 1x1 in "
        "feed-forward and output layers and 4x1 in attention", "FILE",
    )  # fmt: skip
    pruning_pattern: str | None = _arg(
        None, "NxM, Nxchannel, channelxM, mha, or N:M, which keeps N of M (default: 4x1)", "PATTERN"
    )
    target_sparsity: float | None = _arg(
        None, "share of the weights that end as zero (default: 0.9, for N:M what it says)"
    )
    target_speedup: float | None = _arg(None, "instead: times as fast as dense, compressed, on this machine")
    target_bytes: float | None = _arg(None, "instead: bytes of the compressed model, or their share of the dense one's")
    target_flops: float | None = _arg(None, "instead: share of the multiplications of linear layers that is left")
    tokens: list[int] | None = _arg(  # noqa: RUF009 (no list is made)
        None, "tokens in a batch that --target_speedup means (default: 128 4096)"
    )
    pruning_type: str | None = _arg(
        None, "magnitude, gradient, snip, snip_momentum, block_mask, taylor, lamp or random, with _progressive behind "
        "it or not; or pattern_lock, which keeps the zeros there are (default: snip_momentum)", "NAME",
    )  # fmt: skip
    pruning_scope: str | None = _one_of(
        "pruning_scope", None, "whether all layers compete, or each meets the target alone (default: global)"
    )
    min_sparsity_ratio_per_op: float | None = _arg(None, "least sparsity of each layer (default: 0)")
    max_sparsity_ratio_per_op: float | None = _arg(None, "greatest sparsity of each layer (default: 0.98)")
    pruning_frequency: int | None = _arg(None, "steps between events (default: -1, a fortieth of the window)")
    sparsity_warm_epochs: float | None = _arg(None, "epochs before pruning starts (default: 0)")
    cooldown_epochs: float | None = _arg(None, "epochs after pruning ends (default: 0)")
    sparse_training: str | None = _one_of(
        "sparse_training", None, "multiply what is kept alone, on CPUs (default: auto, where that is faster)"
    )
    sparse_cooldown: bool = _arg(False, "train 2:4 layers packed once masks are final, where that is faster")


GROUPS: Any = (ModelArguments, DataArguments, TrainingArguments, PruningArguments)


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

    def pruning_config(self, window: dict[str, int], says: bool = False) -> PruningConfig:
        """The config for a schedule window of `start_step`, `end_step`, `pruning_frequency`.

        What was changed of a file of neural-compressor's is printed if `says` is set.
        """
        p = self.pruning
        if p.pruning_type == "pattern_lock":
            for name in (*SCHEDULE_KEYS[2:], "sparsity_warm_epochs", "cooldown_epochs"):
                if getattr(p, name) is not None:
                    raise PruningError(f"--{name}: pattern_lock holds from the first step; leave --{name} out")
        flags: dict[str, Any] = {"target_sparsity": p.target_sparsity, "pattern": p.pruning_pattern}
        flags |= {"pruning_type": p.pruning_type, "target_speedup": p.target_speedup, "target_flops": p.target_flops}
        flags |= {"target_bytes": int(p.target_bytes) if p.target_bytes and p.target_bytes > 1 else p.target_bytes}
        flags |= {"tokens": p.tokens, "pruning_scope": p.pruning_scope}
        flags |= {key: getattr(p, key) for key in ("min_sparsity_ratio_per_op", "max_sparsity_ratio_per_op")}
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
        path = find_config(p.pruning_config)
        with contextlib.ExitStack() as stack:
            if not says:
                stack.enter_context(contextlib.redirect_stdout(None))
            return PruningConfig.load(path, defaults=defaults, **flags)


DEFAULTS = GlueArguments(ModelArguments(), DataArguments(), TrainingArguments(), PruningArguments()).to_dict()
