"""The nine GLUE tasks: columns, labels, metrics. Source: Wang et al. 2018, arXiv 1804.07461."""

from __future__ import annotations

from dataclasses import dataclass

from trisparse.prune.errors import PruningError, nearest

_ENTAILMENT = ("entailment", "not_entailment")


@dataclass(frozen=True)
class Task:
    """A GLUE task; without labels it is a regression. The mean of the `best` metrics picks the best model."""

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    best: tuple[str, ...] = ("accuracy",)
    validation: str = "validation"
    also_validation: str | None = None  # evaluated too, but not to pick the best

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
    Task("mrpc", ("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("accuracy", "f1")),
    Task("qnli", ("question", "sentence"), _ENTAILMENT),
    Task("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
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
