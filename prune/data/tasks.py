"""Tasks: columns, labels, metrics; the nine of GLUE by name. Source: Wang et al. 2018, arXiv 1804.07461."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from trisparse.prune.errors import PruningError, nearest

_ENTAILMENT = ("entailment", "not_entailment")
_BOTH = ("accuracy", "f1")


@dataclass(frozen=True)
class Task:
    """Without labels it is a regression. The mean of the `best` metrics, which are those that GLUE
    averages, picks the best model.

    `is_own` says that it is none of GLUE's: a label is one of the words of `labels`, never its number.
    """

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    best: tuple[str, ...] = ("accuracy",)
    validation: str = "validation"
    also_validation: str | None = None  # evaluated too, but not to pick the best
    is_own: bool = False

    def __str__(self) -> str:
        answer = "a number" if self.is_regression else f"one of {_some(self.labels)}"
        return f"{self.name}: {' and '.join(self.columns)} to {answer}; {', '.join(self.metrics)}"

    @property
    def is_regression(self) -> bool:
        return not self.labels

    @property
    def num_labels(self) -> int:
        return len(self.labels) or 1


_TASKS = (
    Task("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",), ("matthews_correlation",)),
    Task(
        "mnli",
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        validation="validation_matched",
        also_validation="validation_mismatched",
    ),
    Task("mrpc", ("sentence1", "sentence2"), ("not_equivalent", "equivalent"), _BOTH, _BOTH),
    Task("qnli", ("question", "sentence"), _ENTAILMENT),
    Task("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), _BOTH, _BOTH),
    Task("rte", ("sentence1", "sentence2"), _ENTAILMENT),
    Task("sst2", ("sentence",), ("negative", "positive")),
    Task("stsb", ("sentence1", "sentence2"), (), ("pearson", "spearmanr"), ("pearson", "spearmanr")),
    Task("wnli", ("sentence1", "sentence2"), ("not_entailment", "entailment")),
)
TASKS = {task.name: task for task in _TASKS}


def find_task(name: str | None) -> Task:
    """The task of this name.

    Raises:
        PruningError: there is none.
    """
    if name is None:
        raise PruningError(f"--task_name: missing; want one of {', '.join(TASKS)}")
    if name.lower() not in TASKS:
        raise PruningError(f"--task_name: {name!r} is not one of {', '.join(TASKS)}{nearest(name.lower(), TASKS)}")
    return TASKS[name.lower()]


def label_of(value: Any, task: Task, where: str) -> int | float:
    """The number that stands for a label of a file.

    Raises:
        PruningError: it is none of the task's.
    """
    if task.is_own and task.labels:
        if (text := label_text(value)) in task.labels:
            return task.labels.index(text)
        raise PruningError(f"{where}: label {value!r} is not in the training file, which has {_some(task.labels)}")
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


def label_text(value: Any) -> str:
    """A label of one's own as `Task.labels` has it: 1, 1.0 and "1" are one, "01" is another."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def _some(labels: tuple[str, ...]) -> str:
    more = f" and {len(labels) - 6} more" if len(labels) > 6 else ""
    return ", ".join(labels[:6]) + more
