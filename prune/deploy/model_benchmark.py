"""`trisparse bench --model`: a pruned model dense against compressed, layer by layer and end to end, over tokens."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trisparse.prune.costs.model_time import text_examples
from trisparse.prune.deploy.checkpoint import from_pretrained
from trisparse.prune.deploy.compress import compress, decompress
from trisparse.prune.deploy.compression_report import CompressionReport
from trisparse.prune.errors import PruningError, one_line
from trisparse.prune.files import atomic_write
from trisparse.prune.pruner.plots import plot_gains
from trisparse.prune.speed import times_faster
from trisparse.prune.text_table import aligned
from trisparse.prune.timing import machine

_FASTER = 1.03
_ROUNDS = {"cuda": 30, "cpu": 7}


def benchmark_model(folder: Path, tokens: Sequence[int], out: Path) -> dict[str, Any]:
    """Time a model of `folder`, pruned or compressed; print a table, write `model.json` and `model.png` to `out`.

    Args:
        folder: a transformers checkpoint whose model takes `input_ids`.
        tokens: in a batch of texts as long as divides them, up to 128 and to what the model has positions for.
        out: folder for the results; made if it is not there.

    Raises:
        PruningError: a folder that cannot be loaded, or a model that does not run on `input_ids` alone.
        OSError: results that cannot be written.
    """
    if not tokens or min(tokens) < 1:
        raise PruningError(f"tokens: want at least one number of tokens, each 1 or more, got {list(tokens)}")
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dense = decompress(from_pretrained(folder)).eval().to(device)
    if device.type == "cuda" and next(dense.parameters()).dtype == torch.float32:
        dense = dense.bfloat16()
    if getattr(getattr(dense, "config", None), "vocab_size", None) is None:
        raise PruningError(f"{folder}: config.json: want a model with a vocab_size, which takes input_ids")
    examples = text_examples(dense, tokens)
    try:
        with torch.inference_mode():
            dense(**examples[min(tokens)])
    except Exception as error:
        raise PruningError(f"{folder}: the model does not run on input_ids alone: {one_line(error)}") from error
    small, report = compress(copy.deepcopy(dense), "memory", tokens)
    fast, _ = compress(copy.deepcopy(dense), "speed", tokens)
    ends: list[dict[str, Any]] = []
    for name, model in (("memory", small), ("speed", fast), ("dense again", copy.deepcopy(dense))):
        gains = {n: times_faster(dense, model, example, _ROUNDS[device.type]) for n, example in examples.items()}
        ends.append({"prefer": name, "times_faster": gains})
    result = {"model": folder.name, "machine": machine(device), "tokens": list(tokens)}
    result |= {"end_to_end": ends, "layers": report.to_dict()["layers"]}
    print(table(report, ends, tokens))  # noqa: T201
    atomic_write(out / "model.json", json.dumps(result, indent=1) + "\n")
    curves = {(form, shape): [_mean(found, t) for t in tokens] for (shape, form), found in _kinds(report).items()}
    models = {f"model, {end['prefer']}": [end["times_faster"][t] for t in tokens] for end in ends}
    plot_gains(tokens, curves, models, out / "model.png")
    return result


def table(report: CompressionReport, ends: Sequence[dict[str, Any]], tokens: Sequence[int]) -> str:
    """How many times faster than dense: every kind of layer in its smallest format, then the whole model."""
    head = ["", "format", *(f"T={count}" for count in tokens), ""]
    rows = [head]
    for (shape, form), found in _kinds(report).items():
        gains = [_mean(found, t) for t in tokens]
        rows.append([f"{len(found)} x {shape}", form, *(f"{gain:.2f}" for gain in gains), _note(gains, tokens)])
    for end in ends:
        gains, is_itself = [end["times_faster"][t] for t in tokens], end["prefer"] == "dense again"
        name = "the model against itself" if is_itself else f"compress(prefer={end['prefer']!r})"
        rows.append([name, "", *(f"{gain:.2f}" for gain in gains), "" if is_itself else _note(gains, tokens)])
    dense = sum(not layer.measured for layer in report.layers)
    return "\n".join(["times faster than dense:", *aligned(rows), f"{dense} layers fit no smaller format"])


def _note(gains: Sequence[float], tokens: Sequence[int]) -> str:
    slow = [f"{t}" for t, gain in zip(tokens, gains, strict=True) if gain < _FASTER]
    where = "at all" if len(slow) == len(tokens) else f"at T={', '.join(slow)}"
    return f"no faster than dense {where}" if slow else ""


def _mean(layers: Sequence[Any], tokens: int) -> float:
    return sum(layer.measured[tokens] for layer in layers) / len(layers)


def _kinds(report: CompressionReport) -> dict[tuple[str, str], list[Any]]:
    """Layers of one shape and format."""
    found: dict[tuple[str, str], list[Any]] = {}
    for layer in report.layers:
        if layer.measured:
            found.setdefault((f"{layer.shape[0]}x{layer.shape[1]}", layer.format), []).append(layer)
    return found
