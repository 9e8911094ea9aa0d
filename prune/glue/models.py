"""Load the model, the teacher and the tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from torch import nn

from trisparse.prune.data.tasks import Task
from trisparse.prune.errors import PruningError, one_line
from trisparse.prune.glue.args import ModelArguments
from trisparse.sparse_ops import Linear24, LinearBlocks


def _load(flag: str, path: str, task: Task, dropout: float | None = None) -> tuple[Any, bool]:
    """The classifier at this path, trained with this dropout, and whether its head was in the checkpoint."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    try:
        config = AutoConfig.from_pretrained(path)
        trained_head = any("ForSequenceClassification" in name for name in config.architectures or ())
        if trained_head and config.num_labels != task.num_labels:
            raise PruningError(
                f"--{flag}: {path} answers with {config.num_labels} labels, {task.name} has {task.num_labels}; "
                f"give a model that was trained on {task.name}, or one without a head"
            )
        if task.labels:
            _check_order(flag, path, config, task, trained_head)
        if task.is_own and task.labels:
            config.label2id = {label: number for number, label in enumerate(task.labels)}
            config.id2label = dict(enumerate(task.labels))
        config.num_labels = task.num_labels
        config.problem_type = "regression" if task.is_regression else "single_label_classification"
        own = {k: v for k, v in config.to_dict().items() if "drop" in k and type(v) in (int, float)}
        if dropout is not None:
            if not own:
                raise PruningError(f"--dropout: a {config.model_type} has none in its configuration; leave it out")
            config.update(dict.fromkeys(own, dropout))
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path, config=config, dtype="float32", output_loading_info=True
        )
        trained_head = _trained_head(flag, path, model, info["missing_keys"], trained_head)
        model.config.update(own)  # modules have read it; what is saved is trained on as it was before
    except PruningError:
        raise
    except Exception as error:  # a broken folder fails in many ways
        raise PruningError(f"--{flag}: {path} can't be loaded: {' '.join(str(error).split())[:200]}") from None
    return model, trained_head


def _check_order(flag: str, path: str, config: Any, task: Task, trained_head: bool) -> None:
    """Refuse a model that knows the task's labels by other numbers."""
    known = {str(label).lower(): number for label, number in config.label2id.items()}
    numbers = {label.lower(): number for number, label in enumerate(task.labels)}
    if trained_head and known.keys() == numbers.keys() and known != numbers:
        mend = f"write 0 to {len(numbers) - 1} in column 'label', as this model counts them"
        raise PruningError(
            f"--{flag}: {path} has the labels in another order, {', '.join(config.label2id)}; "
            + (mend if task.is_own else f"{task.name} has {', '.join(task.labels)}: fine-tune one without a head")
        )


def _trained_head(flag: str, path: str, model: Any, missing: Iterable[str], is_claimed: bool) -> bool:
    """Whether the checkpoint holds the head; PruningError where it lacks what is no head.

    A pooler may be missing: encoders are published without it, and training makes one.
    """
    base = f"{model.base_model_prefix}."
    lacking = sorted(name for name in missing if name.startswith(base) and "pooler" not in name)
    if lacking:
        raise PruningError(
            f"--{flag}: {path} lacks {len(lacking)} tensors of a {type(model).__name__}, which would be random: "
            f"{', '.join(lacking[:3])}{', …' if len(lacking) > 3 else ''}"
        )
    return is_claimed and all(name.startswith(base) for name in missing)


def load_models(args: ModelArguments, task: Task) -> tuple[nn.Module, nn.Module | None, Any]:
    """Student, teacher (None without distillation) and tokenizer.

    Raises:
        PruningError: a model can't be loaded, has other labels, or can't be a teacher.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logging.getLogger("transformers.modeling_utils").setLevel(logging.ERROR)
    path = args.model_name_or_path
    assert path is not None
    model, trained_head = _load("model_name_or_path", path, task, args.dropout)
    if any(isinstance(module, (Linear24, LinearBlocks)) for module in model.modules()):
        raise PruningError(
            f"--model_name_or_path: {path} is compressed, and its packed layers do not train; give what came of "
            f"`trisparse export {path} OUT --format dense`"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, use_fast=not args.use_slow_tokenizer)
    except Exception as error:  # a broken file fails in many ways
        raise PruningError(f"--model_name_or_path: {path} has no tokenizer: {one_line(error)}") from None
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise PruningError(f"--model_name_or_path: {path} has no tokenizer: its vocabulary is empty")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise PruningError(f"--model_name_or_path: the tokenizer of {path} has no padding token")
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    if not args.distill_loss_weight:
        return model, None, tokenizer

    flag = "teacher_model_name_or_path" if args.teacher_model_name_or_path else "model_name_or_path"
    teacher_path = args.teacher_model_name_or_path or path
    teacher, teacher_head = _load(flag, teacher_path, task)
    if not teacher_head:
        raise PruningError(
            f"--{flag}: {teacher_path} has no trained classification head to distil from; fine-tune it first "
            "(without --do_prune and --distill_loss_weight)"
        )
    if not args.trains_head and not trained_head:
        raise PruningError(
            f"--model_name_or_path: {path} has no trained classification head, and matching hidden states never trains "
            "one; start from the fine-tuned teacher, or use --distill_mode both or --label_loss_weight 1"
        )
    teacher.config.pad_token_id = model.config.pad_token_id
    if args.teacher_model_name_or_path and not _same_vocabulary(teacher_path, tokenizer):
        raise PruningError(
            f"--{flag}: the tokenizer of {teacher_path} is not that of {path}; it would read other words"
        )
    mine, theirs = model.config.hidden_size, teacher.config.hidden_size
    if args.distill_mode != "logits" and mine != theirs:
        raise PruningError(
            f"--distill_mode: {args.distill_mode!r} needs equal hidden sizes, the model has {mine} and the teacher "
            f"{theirs}; use logits"
        )
    return model, teacher, tokenizer


def _same_vocabulary(path: str, tokenizer: Any) -> bool:
    """Whether the tokenizer at this path, if there is one, gives words the same numbers."""
    from transformers import AutoTokenizer

    try:
        other = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError):
        return True
    return len(other) <= len(other.all_special_ids) or other.get_vocab() == tokenizer.get_vocab()


def check_capacity(flag: str, model: Any, longest: int, largest_token: int) -> None:
    """Raise PruningError if texts are longer, or token numbers larger, than the model can take."""
    words = model.get_input_embeddings().num_embeddings
    if largest_token >= words:
        raise PruningError(f"--{flag}: the model knows {words} words, and the tokenizer gives number {largest_token}")
    positions = getattr(model.config, "max_position_embeddings", None)
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    if positions and padding is not None:
        positions -= padding + 1  # RoBERTa counts positions from behind the padding's
    if positions and 0 < positions < longest:  # XLNet says -1: as many as one likes
        raise PruningError(f"--max_length: texts have up to {longest} tokens, the model of --{flag} takes {positions}")
