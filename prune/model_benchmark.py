"""`trisparse-bench --model`: a pruned model dense against compressed, layer by layer and end to end, over tokens."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trisparse.prune.checkpoint import from_pretrained
from trisparse.prune.compress import compress, decompress
from trisparse.prune.compression_report import CompressionReport
from trisparse.prune.errors import PruningError
from trisparse.prune.files import atomic_write
from trisparse.prune.plots import plot_gains
from trisparse.prune.speed import times_faster
from trisparse.prune.timing import machine

_LENGTH = 128  # tokens of a text, where there are that many
_FASTER = 1.03
_ROUNDS = {"cuda": 30, "cpu": 7}


def benchmark_model(folder: Path, tokens: Sequence[int], out: Path) -> dict[str, Any]:
    """Time a model of `folder`, pruned or compressed; print a table, write `model.json` and `model.png` to `out`.

    Args:
        folder: a transformers checkpoint whose model takes `input_ids`.
        tokens: in a batch, in texts of 128 or less.
        out: folder for the results; made if it is not there.

    Raises:
        PruningError: a folder that cannot be loaded, or a model that does not take `input_ids`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dense = decompress(from_pretrained(folder)).eval().to(device)
    if device.type == "cuda" and next(dense.parameters()).dtype == torch.float32:
        dense = dense.bfloat16()
    ids = getattr(getattr(dense, "config", None), "vocab_size", None)
    if ids is None:
        raise PruningError(f"{folder}: config.json: want a model with a vocab_size, which takes input_ids")
    small, report = compress(copy.deepcopy(dense), "memory", tokens)
    fast, _ = compress(copy.deepcopy(dense), "speed", tokens)
    ends: list[dict[str, Any]] = []
    for name, model in (("memory", small), ("speed", fast), ("dense again", copy.deepcopy(dense))):
        gains = {count: _end_to_end(dense, model, ids, count, device) for count in tokens}
        ends.append({"prefer": name, "times_faster": gains})
    result = {"model": folder.name, "machine": machine(device), "tokens": list(tokens)}
    result |= {"end_to_end": ends, "layers": report.to_dict()["layers"]}
    print(table(report, ends, tokens))  # noqa: T201
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / "model.json", json.dumps(result, indent=1) + "\n")
    curves = {f"{form}, {shape}": [_mean(found, t) for t in tokens] for (shape, form), found in _kinds(report).items()}
    models = {f"model, {end['prefer']}": [end["times_faster"][t] for t in tokens] for end in ends}
    plot_gains(tokens, curves, models, out / "model.png")
    return result


def _end_to_end(dense: nn.Module, model: nn.Module, vocabulary: int, tokens: int, device: torch.device) -> float:
    length = min(tokens, _LENGTH)
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.randint(vocabulary, (-(-tokens // length), length), generator=generator).to(device)
    return times_faster(dense, model, {"input_ids": ids}, _ROUNDS[device.type])


def table(report: CompressionReport, ends: Sequence[dict[str, Any]], tokens: Sequence[int]) -> str:
    """How many times faster than dense: every kind of layer in its smallest format, then the whole model."""
    head = ["", "format", *(f"T={count}" for count in tokens), ""]
    rows = [head]
    for (shape, form), found in _kinds(report).items():
        gains = [_mean(found, t) for t in tokens]
        slow = [f"{t}" for t, gain in zip(tokens, gains, strict=True) if gain < _FASTER]
        where = "" if not slow else "at all" if len(slow) == len(tokens) else f"at T={', '.join(slow)}"
        note = f"dense is faster here {where}".strip() if slow else ""
        rows.append([f"{len(found)} x {shape}", form, *(f"{gain:.2f}" for gain in gains), note])
    for end in ends:
        name = "the model against itself" if end["prefer"] == "dense again" else f"compress(prefer={end['prefer']!r})"
        rows.append([name, "", *(f"{end['times_faster'][t]:.2f}" for t in tokens), ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    dense = sum(not layer.measured for layer in report.layers)
    return "\n".join(["times faster than dense:", *lines, f"{dense} linear layers fit no smaller format"])


def _mean(layers: Sequence[Any], tokens: int) -> float:
    return sum(layer.measured[tokens] for layer in layers) / len(layers)


def _kinds(report: CompressionReport) -> dict[tuple[str, str], list[Any]]:
    """Layers of one shape and format."""
    found: dict[tuple[str, str], list[Any]] = {}
    for layer in report.layers:
        if layer.measured:
            found.setdefault((f"{layer.shape[0]}x{layer.shape[1]}", layer.format), []).append(layer)
    return found
