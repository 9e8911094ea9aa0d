"""A task made of somebody's own files: which columns are read, and what their labels are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trisparse.prune.data.arguments import DataArguments
from trisparse.prune.data.rows import Example, find_file, rows_of
from trisparse.prune.data.tasks import Task, find_task, label_text
from trisparse.prune.errors import PruningError

_PAIR = ("sentence1", "sentence2")


def task_of(data: DataArguments) -> Task:
    """The GLUE task that is named, or the one that the training file makes.

    Raises:
        PruningError: as `own_task`, or there is no such task, or no such file.
    """
    if data.task_name is not None:
        return find_task(data.task_name)
    path = Path(data.train_file) if data.train_file else find_file(Path(data.dataset_dir or ""), ["train"])
    return own_task(data.own_name, path)


def own_task(name: str, path: Path) -> Task:
    """A task of a file's columns, as run_glue_no_trainer.py of transformers makes one.

    Text stands in `sentence1` and `sentence2`, else in the first two columns of text, or in the only one. Labels stand
    in `label`: numbers one of which has a decimal point make a regression, all else is classes, in sorted order.

    Raises:
        PruningError: there is no row, no text or no label, or all labels are one; names the file and the line.
    """
    rows = list(rows_of(path))
    if not rows:
        raise PruningError(f"{path}: holds no examples")
    for where, row in rows:
        if "label" not in row:
            raise PruningError(f"{where}: column 'label' is missing; it has {', '.join(map(str, row))}")
        if (
            not isinstance(row["label"], str | int | float)
            or row["label"] != row["label"]
            or not str(row["label"]).strip()
        ):
            raise PruningError(f"{where}: column 'label': want text or a number, got {row['label']!r}")
    columns, values = _text_columns(path, [row for _, row in rows]), [row["label"] for _, row in rows]
    numbers = [_number(value) for value in values]
    if all(number is not None for number in numbers) and any(isinstance(number, float) for number in numbers):
        best = ("pearson", "spearmanr")
        return Task(name, columns, (), (*best, "mse"), best, is_own=True)
    are_whole = all(isinstance(number, int) for number in numbers)
    labels = sorted({label_text(value) for value in values})
    labels = sorted(labels, key=int) if are_whole else labels  # 7 and 007 in the order of their texts
    if len(labels) == 1:
        raise PruningError(f"{path}: all {len(rows)} labels are {labels[0]!r}; want two classes or more")
    return Task(name, columns, tuple(labels), is_own=True)


def _text_columns(path: Path, rows: Sequence[Example]) -> tuple[str, ...]:
    names = list(dict.fromkeys(name for row in rows for name in row if name != "label"))
    if set(_PAIR) <= set(names):
        return _PAIR
    texts = [name for name in names if any(_is_text(row.get(name)) for row in rows)]
    if not texts:
        raise PruningError(f"{path}: no column beside 'label' holds text; it has {', '.join(map(str, rows[0]))}")
    return tuple(texts[:2])


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and any(letter.isalpha() for letter in value)


def _number(value: Any) -> int | float | None:
    if isinstance(value, bool):
        return None
    for kind in (int, float):
        try:
            return value if isinstance(value, int | float) else kind(value)
        except ValueError:
            continue
    return None
