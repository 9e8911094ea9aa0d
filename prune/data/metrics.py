"""GLUE's metrics as `evaluate.Metric`s that need no network; scikit-learn and SciPy do the counting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from trisparse.prune.data.tasks import Task


def _info(dtype: str, description: str) -> evaluate.MetricInfo:
    value = datasets.Value(dtype)
    return evaluate.MetricInfo(
        description=description,
        citation="",
        inputs_description="predictions and references, one value an example",
        features=datasets.Features({"predictions": value, "references": value}),
    )


class Accuracy(evaluate.Metric):
    """Fraction of examples whose class is right."""

    def _info(self) -> evaluate.MetricInfo:
        return _info("int64", "accuracy")

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class F1(evaluate.Metric):
    """Harmonic mean of precision and recall of class 1."""

    def _info(self) -> evaluate.MetricInfo:
        return _info("int64", "F1")

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"f1": float(f1_score(references, predictions, zero_division=0))}


class Matthews(evaluate.Metric):
    """Matthews' correlation coefficient."""

    def _info(self) -> evaluate.MetricInfo:
        return _info("int64", "Matthews correlation")

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"matthews_correlation": float(matthews_corrcoef(references, predictions))}


class Correlation(evaluate.Metric):
    """Pearson's and Spearman's correlation; 0 where a constant has none."""

    def _info(self) -> evaluate.MetricInfo:
        return _info("float64", "Pearson and Spearman correlation")

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        if np.ptp(predictions) == 0 or np.ptp(references) == 0:
            return {"pearson": 0.0, "spearmanr": 0.0}
        return {
            "pearson": float(pearsonr(predictions, references)[0]),
            "spearmanr": float(spearmanr(predictions, references)[0]),
        }


class SquaredError(evaluate.Metric):
    """Mean squared difference of prediction and reference."""

    def _info(self) -> evaluate.MetricInfo:
        return _info("float64", "mean squared error")

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"mse": float(np.mean(np.square(np.asarray(predictions) - np.asarray(references))))}


METRICS: dict[str, type[evaluate.Metric]] = {
    "accuracy": Accuracy,
    "f1": F1,
    "matthews_correlation": Matthews,
    "pearson": Correlation,
    "spearmanr": Correlation,
    "mse": SquaredError,
}


def compute_metrics(task: Task, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """All metrics of the task."""
    kinds = dict.fromkeys(METRICS[name] for name in task.metrics)
    results: dict[str, float] = {}
    for kind in kinds:
        results |= kind(keep_in_memory=True).compute(predictions=predictions, references=references)
    return results


def best_value(task: Task, metrics: dict[str, float]) -> float:
    """The number by which the best model is chosen."""
    return sum(metrics[name] for name in task.best) / len(task.best)


def majority_metrics(task: Task, references: Sequence[float]) -> dict[str, float]:
    """What always answering the most frequent class gets; empty for regression."""
    if task.is_regression:
        return {}
    most = int(np.bincount(np.asarray(references, dtype=np.int64)).argmax())
    return compute_metrics(task, [most] * len(references), references)
