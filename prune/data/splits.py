"""A task's examples, from files or the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from trisparse.prune.data.arguments import FORMATS, DataArguments
from trisparse.prune.data.rows import Example, find_file, rows_of
from trisparse.prune.data.tasks import Task, label_of
from trisparse.prune.errors import PruningError

_HUB = "nyu-mll/glue"
_HOLDOUT_SEED = 0  # not the run's: runs of several seeds are compared on the same held-out examples


def read_file(path: Path, task: Task) -> list[Example]:
    """The examples of one file: the task's text columns and `label`.

    Raises:
        PruningError: names the file and the line that is wrong.
    """
    examples = []
    for where, row in rows_of(path):
        for column in (*task.columns, "label"):
            if column not in row:
                raise PruningError(f"{where}: column {column!r} is missing; it has {', '.join(map(str, row))}")
        for column in task.columns:
            if not isinstance(row[column], str):
                raise PruningError(f"{where}: column {column!r}: want text, got {row[column]!r}")
            if any(0xD800 <= ord(letter) < 0xE000 for letter in row[column]):
                raise PruningError(f"{where}: column {column!r}: holds half of a surrogate pair, which is no text")
        examples.append({c: row[c] for c in task.columns} | {"label": label_of(row["label"], task, where)})
    if not examples:
        raise PruningError(f"{path}: holds no examples")
    return examples


def load_splits(data: DataArguments, task: Task) -> dict[str, list[Example]]:
    """`train`, `validation` and, where the task has one, its second validation set.

    Raises:
        PruningError: a file is missing or malformed, or the hub can't be reached.
    """
    splits = _load_files(data, task) if data.dataset_dir or data.train_file else _load_hub(task)
    return hold_out(splits["train"], data.holdout_fraction) if data.holdout_fraction else splits


def hold_out(train: Sequence[Example], fraction: float) -> dict[str, list[Example]]:
    """Split training examples in two, `fraction` of them as `validation`; the same split at every call.

    Raises:
        PruningError: one of the two would be empty.
    """
    count = round(fraction * len(train))
    if not 0 < count < len(train):
        raise PruningError(f"--holdout_fraction: {fraction} of {len(train)} training examples leaves one part empty")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(_HOLDOUT_SEED), device="cpu").tolist()
    chosen = set(order[:count])
    parts: dict[str, list[Example]] = {"train": [], "validation": []}
    for i, example in enumerate(train):
        parts["validation" if i in chosen else "train"].append(example)
    return parts


def _load_files(data: DataArguments, task: Task) -> dict[str, list[Example]]:
    folder = Path(data.dataset_dir) if data.dataset_dir else None

    def path(given: str | None, *splits: str) -> Path:
        if given:
            return Path(given)
        assert folder is not None
        return find_file(folder, splits)

    splits = {"train": read_file(path(data.train_file, "train"), task)}
    if data.holdout_fraction:  # of these
        return splits
    splits["validation"] = read_file(path(data.validation_file, task.validation, "validation"), task)
    if folder and task.also_validation and any((folder / f"{task.also_validation}.{e}").is_file() for e in FORMATS):
        splits[task.also_validation] = read_file(find_file(folder, [task.also_validation]), task)
    return splits


def _load_hub(task: Task) -> dict[str, list[Example]]:
    from datasets import load_dataset
    from huggingface_hub import HfApi, constants

    try:
        if not constants.HF_HUB_OFFLINE:
            HfApi().dataset_info(_HUB, timeout=10)  # says at once what load_dataset would retry for half a minute
        hub = load_dataset(_HUB, task.name)
    except Exception as error:  # whatever the network stack raises, the way out is the same
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PruningError(
            f"--dataset_dir: not given, and {_HUB} can't be fetched ({reason}); give a folder with train.jsonl and "
            f"validation.jsonl of {task.name}, or set HF_HUB_OFFLINE=1 to use a copy that was fetched before"
        ) from None
    names = {"train": "train", "validation": task.validation}
    if task.also_validation:
        names[task.also_validation] = task.also_validation
    columns = (*task.columns, "label")
    return {ours: [{c: row[c] for c in columns} for row in hub[theirs]] for ours, theirs in names.items()}
