"""GLUE examples from files or the hub, tokenized and batched."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from trisparse.prune.errors import PruningError
from trisparse.prune.glue.args import FORMATS, DataArguments
from trisparse.prune.glue.tasks import Task

Example = dict[str, Any]
_HUB = "nyu-mll/glue"
_HOLDOUT_SEED = 0  # not the run's: runs of several seeds are compared on the same held-out examples


def _rows(path: Path) -> Iterator[tuple[str, Example]]:
    """Place and content of each row, a file's columns as they are."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            rows = pq.read_table(path).to_pylist()
        except (OSError, ValueError) as error:
            raise PruningError(f"{path}: is no parquet file: {str(error).splitlines()[0]}") from None
        yield from ((f"{path}: row {i}", row) for i, row in enumerate(rows, 1))
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            if path.suffix in (".csv", ".tsv"):
                tab = path.suffix == ".tsv"
                reader = csv.DictReader(
                    file, delimiter="\t" if tab else ",", quoting=csv.QUOTE_NONE if tab else csv.QUOTE_MINIMAL
                )
                names = reader.fieldnames or []
                if len(set(names)) < len(names):
                    raise PruningError(f"{path}: line 1: a column is named twice: {', '.join(names)}")
                for row in reader:
                    where = f"{path}: line {reader.line_num}"
                    if None in row or None in row.values():
                        raise PruningError(f"{where}: want {len(reader.fieldnames or ())} columns as in the header")
                    yield where, row
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}: line {number}", _json_row(line, f"{path}: line {number}")
        except UnicodeDecodeError as error:
            raise PruningError(f"{path}: is not UTF-8 text: {error}") from None
        except csv.Error as error:
            raise PruningError(f"{path}: line {reader.line_num}: {error}") from None


def _json_row(line: str, where: str) -> Example:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise PruningError(f"{where}: is no JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(row, dict):
        raise PruningError(f"{where}: want one JSON object a line, got {type(row).__name__}")
    return row


def _label(value: Any, task: Task, where: str) -> int | float:
    if isinstance(value, str) and value in task.labels:
        return task.labels.index(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if task.is_regression and math.isfinite(number):
        return number
    if number in range(task.num_labels):
        return int(number)
    known = "a number" if task.is_regression else f"0 to {task.num_labels - 1} or {', '.join(task.labels)}"
    raise PruningError(f"{where}: label {value!r} is none of {task.name}'s; want {known}")


def read_file(path: Path, task: Task) -> list[Example]:
    """The examples of one file: the task's text columns and `label`.

    Raises:
        PruningError: names the file and the line that is wrong.
    """
    examples = []
    for where, row in _rows(path):
        for column in (*task.columns, "label"):
            if column not in row:
                raise PruningError(f"{where}: column {column!r} is missing; it has {', '.join(map(str, row))}")
        for column in task.columns:
            if not isinstance(row[column], str):
                raise PruningError(f"{where}: column {column!r}: want text, got {row[column]!r}")
            if any(0xD800 <= ord(letter) < 0xE000 for letter in row[column]):
                raise PruningError(f"{where}: column {column!r}: holds half of a surrogate pair, which is no text")
        examples.append({c: row[c] for c in task.columns} | {"label": _label(row["label"], task, where)})
    if not examples:
        raise PruningError(f"{path}: holds no examples")
    return examples


def _find(folder: Path, splits: Sequence[str]) -> Path:
    for split in splits:
        for ending in FORMATS:
            if (path := folder / f"{split}.{ending}").is_file():
                return path
    raise PruningError(
        f"--dataset_dir: {folder} holds no {' or '.join(splits)} as .{', .'.join(FORMATS)}; "
        f"it holds {', '.join(sorted(p.name for p in folder.iterdir())[:8]) or 'nothing'}"
    )


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
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(_HOLDOUT_SEED)).tolist()
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
        return _find(folder, splits)

    splits = {
        "train": read_file(path(data.train_file, "train"), task),
        "validation": read_file(path(data.validation_file, task.validation, "validation"), task),
    }
    if folder and task.also_validation and any((folder / f"{task.also_validation}.{e}").is_file() for e in FORMATS):
        splits[task.also_validation] = read_file(_find(folder, [task.also_validation]), task)
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


def tokenize(examples: Sequence[Example], task: Task, tokenizer: Any, max_length: int) -> list[Example]:
    """Token features of each example, with `labels` and its `index`."""
    texts = [[example[c] for example in examples] for c in task.columns]
    encoded = tokenizer(*texts, truncation=True, max_length=max_length)
    return [
        {**{k: v[i] for k, v in encoded.items()}, "labels": example["label"], "index": i}
        for i, example in enumerate(examples)
    ]


class EpochSampler(Sampler[int]):
    """A shuffle that depends on seed and epoch alone, so that a resumed run sees the same batches."""

    def __init__(self, lengths: Sequence[int], seed: int, batch_size: int, group_by_length: bool) -> None:
        self.lengths = list(lengths)
        self.seed = seed
        self.batch_size = batch_size
        self.group_by_length = group_by_length
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        if self.group_by_length:
            from transformers.trainer_pt_utils import get_length_grouped_indices

            return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))
        return iter(torch.randperm(len(self.lengths), generator=generator).tolist())


def make_loader(
    features: Sequence[Example],
    tokenizer: Any,
    data: DataArguments,
    batch_size: int,
    sampler: EpochSampler | None = None,
    multiple: int | None = None,
) -> DataLoader:
    """Batches of padded tensors, with the examples' `index`; `multiple` of tokens to pad to.

    On a GPU a process of its own pads the next batches meanwhile, in memory that the GPU can copy from by itself.
    """
    from transformers import DataCollatorWithPadding

    padding = "max_length" if data.pad_to_max_length else "longest"
    collate = DataCollatorWithPadding(
        tokenizer, padding=padding, max_length=data.max_length, pad_to_multiple_of=multiple
    )
    # a loader draws a seed whenever it starts; from a generator of its own, so that dropout is not moved on by it
    own = torch.Generator()
    ahead: dict[str, Any] = {}
    if torch.cuda.is_available():
        ahead = {"num_workers": 1, "persistent_workers": True, "prefetch_factor": 8, "pin_memory": True}
    return DataLoader(features, batch_size, sampler=sampler, collate_fn=collate, generator=own, **ahead)  # type: ignore
