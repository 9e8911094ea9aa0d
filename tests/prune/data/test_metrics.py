"""GLUE's metrics against their definitions, and against scikit-learn's."""

import math

import numpy as np
import pytest

from trisparse.prune.data.tasks import TASKS

metrics = pytest.importorskip("sklearn.metrics")
pytest.importorskip("evaluate")

from trisparse.prune.data.metrics import best_value, compute_metrics, majority_metrics  # noqa: E402


def test_metrics_by_their_definitions():
    said, true = [1, 1, 1, 0, 0, 0, 1, 0], [1, 1, 0, 0, 0, 1, 1, 0]
    tp, fp, fn, tn = 3, 1, 1, 3
    assert compute_metrics(TASKS["mrpc"], said, true) == pytest.approx(
        {"accuracy": 6 / 8, "f1": 2 * tp / (2 * tp + fp + fn)}
    )
    matthews = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert compute_metrics(TASKS["cola"], said, true) == pytest.approx({"matthews_correlation": matthews})
    got = compute_metrics(TASKS["stsb"], [1.0, 2.0, 4.0], [1.0, 3.0, 2.0])
    assert got == pytest.approx({"pearson": 0.3273268, "spearmanr": 0.5})
    assert best_value(TASKS["mrpc"], {"accuracy": 0.75, "f1": 0.5}) == 0.625, "as GLUE averages"
    assert best_value(TASKS["stsb"], got) == pytest.approx((0.3273268 + 0.5) / 2)
    assert compute_metrics(TASKS["stsb"], [1.0, 1.0, 1.0], [1.0, 3.0, 2.0]) == {"pearson": 0.0, "spearmanr": 0.0}
    assert majority_metrics(TASKS["mrpc"], [1] * 279 + [0] * 129) == pytest.approx(
        {"accuracy": 0.6838, "f1": 0.8122}, abs=1e-4
    )
    assert majority_metrics(TASKS["stsb"], [1.0, 2.0]) == {}


def test_metrics_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    said, true = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
    got = compute_metrics(TASKS["qqp"], said.tolist(), true.tolist())
    assert got == {"accuracy": metrics.accuracy_score(true, said), "f1": metrics.f1_score(true, said)}
    (got,) = compute_metrics(TASKS["cola"], said.tolist(), true.tolist()).values()
    assert got == metrics.matthews_corrcoef(true, said)
