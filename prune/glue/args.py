"""The flags of `trisparse train`: names, defaults, and what help says of them."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from trisparse.prune.config.config import PruningConfig
from trisparse.prune.config.file import find_config
from trisparse.prune.config.group import SCHEDULE_KEYS
from trisparse.prune.data.arguments import DataArguments
from trisparse.prune.errors import PruningError
from trisparse.prune.parser import flag

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


def _one_of(name: str, default: str | None, help: str) -> Any:
    return flag(default, help, f"{{{','.join(CHOICES[name])}}}")


@dataclass
class ModelArguments:
    """What is trained, and what it learns from."""

    _argument_group_name = "the model, and what it learns from"

    recipe: str | None = flag(None, "flags of a recipe below, or of a .yaml; a flag that is given wins", "NAME")
    model_name_or_path: str | None = flag(None, "folder or hub name of the model to train", "MODEL")
    teacher_model_name_or_path: str | None = flag(
        None, "dense teacher (default: the model itself as it was loaded)", "MODEL"
    )
    use_slow_tokenizer: bool = flag(False, "use the tokenizer that is not backed by Rust, where there is one")
    distill_loss_weight: float = flag(
        0.0, "weight of the distillation loss, which takes the place of the labels'; 0 for labels alone"
    )
    distill_mode: str = _one_of("distill_mode", "hidden", "what is matched to the teacher")
    dropout: float | None = flag(None, "every dropout probability of the model as it trains (default: its own)", "P")
    label_loss_weight: float = flag(0.0, "weight of the labels' loss beside the distillation loss")
    cache_teacher: bool = flag(False, "run the teacher once on every training example, and keep what it says")

    @property
    def trains_head(self) -> bool:
        """Whether some loss reaches the classification head: that of hidden states does not."""
        return not self.distill_loss_weight or self.distill_mode != "hidden" or self.label_loss_weight > 0


@dataclass
class TrainingArguments:
    """How long and how fast."""

    _argument_group_name = "the run"

    output_dir: str | None = flag(None, "where the run is written (default: runs/TASK-PATTERN)", "DIR")
    overwrite_output_dir: bool = flag(False, "write over the run that output_dir holds")
    resume_from_checkpoint: str | None = flag(None, "folder of the run to go on with, or its checkpoint.pt", "DIR")
    optimizer: str = _one_of("optimizer", "adamw", "masked_adamw is AdamW that scores and masks in the same pass")
    learning_rate: float = flag(5e-5, "peak learning rate")
    weight_decay: float = flag(0.0, "decay of all weights but biases and norms")
    num_train_epochs: float | None = flag(
        None, "passes over the training data (default: 3, or as max_train_steps says)"
    )
    max_train_steps: int | None = flag(None, "optimizer steps, whatever the epochs")
    gradient_accumulation_steps: int = flag(1, "batches in an optimizer step")
    lr_scheduler_type: str = _one_of("lr_scheduler_type", "linear", "learning rate schedule")
    num_warmup_steps: int = flag(0, "steps in which the learning rate rises")
    seed: int = flag(42, "seed of everything random")
    mixed_precision: str = _one_of("mixed_precision", "no", "what matrices are multiplied in")
    compile: bool = flag(
        False, "compile the model with torch.compile; on a GPU its kernels are replayed as CUDA graphs"
    )
    fsdp: bool = flag(False, "spread the weights over the processes, too, not only the batches (FSDP2)")
    report_to: str = _one_of("report_to", "none", "where the run is logged")
    compress: str | None = _one_of(
        "compress", None, "leave the best model in compressed/, too, packed for one of these"
    )
    push_to_hub: bool = flag(False, "upload the result")
    hub_model_id: str | None = flag(None, "repository to upload to", "NAME")
    hub_token: str | None = flag(None, "token of the upload (default: the one you are logged in with)", "TOKEN")


@dataclass
class PruningArguments:
    """What is pruned, and when."""

    _argument_group_name = "what is pruned, and when"

    do_prune: bool = flag(False, "prune while training; the flags below need it")
    pruning_config: str | None = flag(
        None, "config of several groups, a .json or .yaml, neural-compressor's too; or mixed, which is 1x1 in "
        "feed-forward and output layers and 4x1 in attention", "FILE",
    )  # fmt: skip
    pruning_pattern: str | None = flag(
        None, "NxM, Nxchannel, channelxM, mha, or N:M, which keeps N of M (default: 4x1)", "PATTERN"
    )
    target_sparsity: float | None = flag(
        None, "share of the weights that end as zero (default: 0.9, for N:M what it says)"
    )
    target_speedup: float | None = flag(None, "instead: times as fast as dense, compressed, on this machine")
    target_bytes: float | None = flag(None, "instead: bytes of the compressed model, or their share of the dense one's")
    target_flops: float | None = flag(None, "instead: share of the multiplications of linear layers that is left")
    tokens: list[int] | None = flag(  # noqa: RUF009 (no list is made)
        None, "tokens in a batch that --target_speedup means (default: 128 4096)"
    )
    pruning_type: str | None = flag(
        None, "magnitude, gradient, snip, snip_momentum, block_mask, taylor, lamp or random, with _progressive behind "
        "it or not; or pattern_lock, which keeps the zeros there are (default: snip_momentum)", "NAME",
    )  # fmt: skip
    pruning_scope: str | None = _one_of(
        "pruning_scope", None, "whether all layers compete, or each meets the target alone (default: global)"
    )
    min_sparsity_ratio_per_op: float | None = flag(None, "least sparsity of each layer (default: 0)")
    max_sparsity_ratio_per_op: float | None = flag(None, "greatest sparsity of each layer (default: 0.98)")
    pruning_frequency: int | None = flag(None, "steps between events (default: -1, a fortieth of the window)")
    sparsity_warm_epochs: float | None = flag(None, "epochs before pruning starts (default: 0)")
    cooldown_epochs: float | None = flag(None, "epochs after pruning ends (default: 0)")
    sparse_training: str | None = _one_of(
        "sparse_training", None, "multiply what is kept alone, on CPUs (default: auto, where that is faster)"
    )
    sparse_cooldown: bool = flag(False, "train 2:4 layers packed once masks are final, where that is faster")


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
        is_count = p.target_bytes is not None and 1 < p.target_bytes < math.inf
        flags |= {"target_bytes": int(p.target_bytes or 0) if is_count else p.target_bytes}
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
