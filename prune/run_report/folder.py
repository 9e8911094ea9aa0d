"""Read what a run of `trisparse train` left in its folder."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from trisparse.prune.errors import PruningError
from trisparse.prune.glue.output import HISTORY, RESULTS, SPARSITY

# shapes of JSON: a tuple of types, a list of one shape, or a mapping; a mapping from `str` has any keys
_NUMBER = (int, float)
_METRIC = (float, int)  # may be NaN, as a correlation with a constant is
_TEXT = (str,)
_METRICS = {str: _METRIC}
_LARGEST = 2**53  # that a picture can tell from its neighbours
_RESULTS = {
    "task": _TEXT, "pattern": _TEXT, "target_sparsity": (int, float, list, str), "eval": _METRICS,
    "best_eval": (dict, NoneType), "teacher_eval": _METRICS,
    "sparsity": {"pruned_layers": _NUMBER, "matmul_gemm_conv": _NUMBER, "all_parameters": _NUMBER},
    "pattern_verified": (bool, NoneType), "complete": (bool, NoneType), "epochs": _NUMBER, "train_seconds": _NUMBER,
    "steps_per_second": _NUMBER, "device": _TEXT, "versions": {str: _TEXT}, "steps": {"total_steps": _NUMBER},
    "notes": [_TEXT], "arguments": {"model_name_or_path": _TEXT},
}  # fmt: skip
_WINDOW = {"start_step": (int,), "end_step": (int,), "pruning_frequency": (int,)}
_HISTORY = {"steps": [{"step": (int,), "loss": _NUMBER, "sparsity": _NUMBER}], "evals": [{"step": (int,)}]}
_MASKS = {"layers": [_TEXT], "weights": [(int,)], "steps": [(int,)], "pruned": [[(int,)]]}
_LAYER = {
    "name": _TEXT, "pattern": _TEXT, "shape": [(int,)], "weights": (int,), "zeros": (int,), "extra_zeros": (int,),
    "verified": (bool,), "sparsity": _NUMBER,
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run that has ended.

    Attributes:
        folder: its output_dir.
        results: what all_results.json holds.
        steps: rows of the history, with `step`, `loss`, `sparsity` and, of a pruned run, `flips`.
        evals: rows with `step` and every metric.
        masks: see `mask_history.begin_history`; None for a dense run, and for one of an earlier version.
        layers: rows of the sparsity report; None for a dense run.
    """

    folder: Path
    results: dict[str, Any]
    steps: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    masks: dict[str, Any] | None
    layers: list[dict[str, Any]] | None

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def target(self) -> Any:
        """The sparsity aimed at, a list if groups differ; None if nothing is pruned, or zeros are only held."""
        is_lock = self.results["arguments"].get("pruning_type") == "pattern_lock"
        return None if self.layers is None or is_lock else self.results["target_sparsity"]

    @property
    def window(self) -> tuple[int, int, int] | None:
        """First and last step of pruning and the steps between events; None where a config file may say others."""
        plan = self.results["steps"]
        if self.target is None or "start_step" not in plan or self.results["arguments"].get("pruning_config"):
            return None
        return plan["start_step"], plan["end_step"], plan["pruning_frequency"]


def read_run(folder: Path) -> Run:
    """Read and check a run's files.

    Raises:
        PruningError: one that is missing or damaged, by name.
    """
    if not (folder / RESULTS).is_file():
        raise PruningError(f"{folder}: holds no {RESULTS}; want the output_dir of a trisparse train run that has ended")
    results = _read(folder / RESULTS, _RESULTS)
    metrics = list(results["eval"])
    if not metrics:
        raise PruningError(f"{folder / RESULTS}: is damaged: eval: want at least one metric, got none")
    if "start_step" in results["steps"]:
        _check(results["steps"], _WINDOW, f"{folder / RESULTS}: is damaged: steps")
    for key in ("best_eval", "teacher_eval"):
        if results[key]:
            _check(results[key], dict.fromkeys(metrics, _METRIC), f"{folder / RESULTS}: is damaged: {key}")
    history = _read(folder / HISTORY, _HISTORY)
    where = f"{folder / HISTORY}: is damaged: "
    for key in ("steps", "evals"):
        if not history[key]:
            raise PruningError(f"{where}{key}: want at least one, got none")
        _check_rising([row["step"] for row in history[key]], f"{where}{key}")
    _check(history["evals"], [dict.fromkeys(metrics, _METRIC)], f"{where}evals")
    if any("steps_per_second" in row for row in history["steps"]):  # older runs have none
        _check(history["steps"], [{"steps_per_second": _NUMBER}], f"{where}steps")
    masks = history.get("masks")
    if masks is not None:
        _check(history["steps"], [{"flips": (int,)}], f"{where}steps")
        _check(masks, _MASKS, f"{where}masks")
        _check_rising(masks["steps"], f"{where}masks")
        wide, high = len(masks["layers"]), len(masks["steps"])
        lengths = {len(masks["weights"]), *map(len, masks["pruned"])}
        if lengths != {wide} or len(masks["pruned"]) != high or not (wide and high):
            raise PruningError(f"{where}masks: want {high} rows of {wide} layers, got lengths {sorted(lengths)}")
    layers = None
    if results["pattern"] != "dense":
        layers = _read(folder / SPARSITY, {"layers": [_LAYER]})["layers"]
    return Run(folder, results, history["steps"], history["evals"], masks, layers)


def _read(path: Path, shape: Any) -> dict[str, Any]:
    if not path.is_file():
        raise PruningError(f"{path}: is missing; without it the run cannot be shown")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise PruningError(f"{path}: is damaged: {str(error).splitlines()[0]}") from None
    _check(value, shape, f"{path}: is damaged")
    return value


def _check_rising(steps: list[int], where: str) -> None:
    if any(after <= before for before, after in itertools.pairwise([-1, *steps])):
        raise PruningError(f"{where}: want steps that rise, got {json.dumps(steps)[:40]}")


def _check(value: Any, shape: Any, where: str) -> None:
    """Raise PruningError if a value read from JSON does not have a shape."""
    if isinstance(shape, tuple):
        if not isinstance(value, shape) or (isinstance(value, bool) and bool not in shape):
            want = " or ".join(kind.__name__ for kind in shape)
            raise PruningError(f"{where}: want {want}, got {json.dumps(value)[:40]}")
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and not abs(value) < _LARGEST and not (shape == _METRIC and value != value):
            raise PruningError(f"{where}: want a number below 2^53, got {json.dumps(value)[:40]}")
    elif isinstance(shape, list):
        _check(value, (list,), where)
        for index, item in enumerate(value):
            _check(item, shape[0], f"{where}: {index}")
    else:
        _check(value, (dict,), where)
        for key, inner in shape.items():
            if key is str:
                for name, item in value.items():
                    _check(item, inner, f"{where}: {name}")
            elif key not in value:
                raise PruningError(f"{where}: {key} is missing")
            else:
                _check(value[key], inner, f"{where}: {key}")
