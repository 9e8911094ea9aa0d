"""`trisparse bench --model`: a pruned model dense against compressed, layers and end to end, over sizes of batches."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trisparse.prune.channels import same_outputs
from trisparse.prune.channels.same_outputs import takes_pictures
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


def benchmark_model(folder: Path, tokens: Sequence[int], out: Path, pictures: Sequence[int] = (1, 8)) -> dict[str, Any]:
    """Time a model of `folder`, pruned or compressed; print a table, write `model.json` and `model.png` to `out`.

    Args:
        folder: a transformers checkpoint whose model takes `input_ids` or `pixel_values`.
        tokens: in a batch of texts as long as divides them, up to 128 and to what the model has positions for.
        out: folder for the results; made if it is not there.
        pictures: in a batch, of a model that takes these.

    Raises:
        PruningError: a folder that cannot be loaded, or a model that does not run on such a batch alone.
        OSError: results that cannot be written.
    """
    for name, counts in (("tokens", tokens), ("pictures", pictures)):
        if not counts or min(counts) < 1:
            raise PruningError(f"{name}: want at least one number of {name}, each 1 or more, got {list(counts)}")
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dense = decompress(from_pretrained(folder)).eval().to(device)
    if device.type == "cuda" and next(dense.parameters()).dtype == torch.float32:
        dense = dense.bfloat16()
    unit, examples = _batches(dense, tokens, pictures, folder)
    given = examples[min(examples)]
    try:
        with torch.inference_mode():
            dense(**given)
    except Exception as error:
        raise PruningError(
            f"{folder}: the model does not run on {next(iter(given))} alone: {one_line(error)}"
        ) from error
    example = given if unit == "pictures" else None
    small, report = compress(copy.deepcopy(dense), "memory", tokens, example=example)
    fast, _ = compress(copy.deepcopy(dense), "speed", tokens, example=example)
    ends: list[dict[str, Any]] = []
    for name, model in (("memory", small), ("speed", fast), ("dense again", copy.deepcopy(dense))):
        gains = {n: times_faster(dense, model, batch, _ROUNDS[device.type]) for n, batch in examples.items()}
        ends.append({"prefer": name, "times_faster": gains})
    result = {"model": folder.name, "machine": machine(device), unit: list(examples)}
    result |= {"end_to_end": ends, "layers": report.to_dict()["layers"]}
    print(table(report, ends, list(examples), unit))  # noqa: T201
    atomic_write(out / "model.json", json.dumps(result, indent=1) + "\n")
    kinds = _kinds(report, list(examples)) if unit == "tokens" else {}
    curves = {(form, shape): [_mean(found, n) for n in examples] for (shape, form), found in kinds.items()}
    models = {f"model, {end['prefer']}": [end["times_faster"][n] for n in examples] for end in ends}
    plot_gains(list(examples), curves, models, out / "model.png", unit)
    return result


def _batches(
    model: Any, tokens: Sequence[int], pictures: Sequence[int], folder: Path
) -> tuple[str, dict[int, Mapping[str, Any]]]:
    """What is counted, and numbers of it -> keywords of the model's forward."""
    device = next(model.parameters()).device
    if takes_pictures(model):
        drawn = {n: same_outputs.pictures(model, n)["pixel_values"].to(device) for n in pictures}
        return "pictures", {n: {"pixel_values": values} for n, values in drawn.items()}
    if getattr(getattr(model, "config", None), "vocab_size", None) is None:
        raise PruningError(
            f"{folder}: config.json: want a model that takes pixel_values, or has a vocab_size and takes input_ids"
        )
    return "tokens", text_examples(model, tokens)


def table(
    report: CompressionReport, ends: Sequence[dict[str, Any]], counts: Sequence[int], unit: str = "tokens"
) -> str:
    """How many times faster than dense: every kind of layer in its smallest format, then the whole model.

    Layers of a model of pictures, of which convolutions are timed on what reaches them, have a table of their own.
    """
    head = ["", "format", *(f"T={n}" if unit == "tokens" else f"pictures={n}" for n in counts), ""]
    rows = [head]
    for (shape, form), found in _kinds(report, counts).items() if unit == "tokens" else ():
        gains = [_mean(found, n) for n in counts]
        rows.append([f"{len(found)} x {shape}", form, *(f"{gain:.2f}" for gain in gains), _note(gains, counts)])
    for end in ends:
        gains, is_itself = [end["times_faster"][n] for n in counts], end["prefer"] == "dense again"
        name = "the model against itself" if is_itself else f"compress(prefer={end['prefer']!r})"
        rows.append([name, "", *(f"{gain:.2f}" for gain in gains), "" if is_itself else _note(gains, counts)])
    dense = sum(not layer.measured for layer in report.layers)
    layers = aligned(report.table()) if unit == "pictures" else []
    return "\n".join([*layers, "times faster than dense:", *aligned(rows), f"{dense} layers fit no smaller format"])


def _note(gains: Sequence[float], counts: Sequence[int]) -> str:
    slow = [f"{n}" for n, gain in zip(counts, gains, strict=True) if gain < _FASTER]
    where = "at all" if len(slow) == len(counts) else f"with {', '.join(slow)}"
    return f"no faster than dense {where}" if slow else ""


def _mean(layers: Sequence[Any], tokens: int) -> float:
    return sum(layer.measured[tokens] for layer in layers) / len(layers)


def _kinds(report: CompressionReport, counts: Sequence[int]) -> dict[tuple[str, str], list[Any]]:
    """Layers of one shape and format, which were timed with these numbers of tokens."""
    found: dict[tuple[str, str], list[Any]] = {}
    for layer in report.layers:
        if set(layer.measured) == set(counts):
            found.setdefault((f"{layer.shape[0]}x{layer.shape[1]}", layer.format), []).append(layer)
    return found
