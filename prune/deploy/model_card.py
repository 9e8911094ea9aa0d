"""The README.md beside a checkpoint: what lies in its files, counted, and how they are loaded."""

from __future__ import annotations

import hashlib
import math
import numbers
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor, nn

from trisparse.prune.deploy.channel_spec import CHANNELS, full_tensors
from trisparse.prune.deploy.formats import Format, matrix_of
from trisparse.prune.deploy.layer_spec import Spec, spec_of
from trisparse.prune.deploy.zero_pattern import BY_CHANCE, pattern_of
from trisparse.prune.errors import PruningError
from trisparse.prune.layers.modules import is_hf_conv1d, op_type, unwrap
from trisparse.prune.layers.weights import named_weights

CARD = "README.md"
_SEAL = "<!-- written by trisparse, SHA-256 of what is above: {} -->\n"
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class CardNotes:
    """What a card says that no file shows.

    Attributes:
        metrics: name -> value.
        metrics_of: whose they are.
        pattern: that it was pruned by; empty for what its zeros look like.
        base_model: its name on the hub; empty for the name that it was loaded by, if that is one.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    metrics_of: str = "this model"
    pattern: str = ""
    base_model: str = ""

    def __post_init__(self) -> None:
        given: Any = self.metrics
        is_table = isinstance(given, Mapping) and all(isinstance(name, str) for name in given)
        if not is_table or not all(isinstance(value, numbers.Real) for value in given.values()):
            raise PruningError(f"metrics: want names and numbers, as {{'f1': 0.87}}, got {given!r:.60}")


class _Layer(NamedTuple):
    """A weight that multiplies: of the dense model's numbers those that are not zero, and its layer's bytes."""

    full: int
    kept: int
    format: str
    pattern: str = ""
    saved_bytes: int = 0


def is_card(path: Path) -> bool:
    """Whether a file is a card of ours that nobody changed."""
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, ValueError):
        return False
    above = text[: text.rstrip("\n").rfind("\n") + 1]
    return text == above + _seal(above)


def card_is_free(folder: Path) -> bool:
    """Whether a card may be written: not over what somebody else wrote, or changed."""
    return not (folder / CARD).exists() or is_card(folder / CARD)


def base_model_in(folder: Path) -> str:
    """What a card of ours names as the base model, or an empty string."""
    if not is_card(folder / CARD):
        return ""
    head = yaml.safe_load((folder / CARD).read_text(encoding="utf-8").split("---\n")[1])
    return head.get("base_model", "")


@torch.no_grad()
def write_card(
    model: nn.Module, folder: Path, notes: CardNotes | None = None, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write the card of a transformers model whose weights have just been written to a folder.

    Args:
        model: packed or not.
        folder: with its safetensors files and no card.
        notes: what the card says besides.
        state: all weights by name, where the model's own parameters hold parts of them.
    """
    notes, bare = notes or CardNotes(), unwrap(model)
    layers = list(_layers(bare, state or {}, not notes.pattern))
    stored = sum(map(_tensor_bytes, folder.glob("*.safetensors")))
    text = _head(bare, layers, notes) + _body(bare, layers, stored, notes)
    (folder / CARD).write_text(text + _seal(text), encoding="utf-8", newline="\n")


def _seal(above: str) -> str:
    return _SEAL.format(hashlib.sha256(above.encode()).hexdigest())


def _layers(model: nn.Module, state: Mapping[str, Tensor], look: bool) -> Iterator[_Layer]:
    """Every weight that multiplies, shared ones once; `look` at what pattern its zeros have."""
    specs = {name: spec for name, module in model.named_modules() if (spec := spec_of(module)) is not None}
    for name, spec in specs.items():
        yield _changed_layer(model.get_submodule(name), spec, look)
    names, seen = {id(p): name for name, p in model.named_parameters()}, set()
    for weight in named_weights(model):
        own = weight.tensor
        if own is not None and id(own) not in seen and weight.name not in specs:
            seen.add(id(own))
            tensor = state.get(names[id(own)], own).detach()
            linear = look and weight.op_type == "Linear" and tensor.dim() == 2
            matrix = tensor.t() if is_hf_conv1d(weight.module) else tensor
            kept = int(tensor.count_nonzero())
            yield _Layer(tensor.numel(), kept, "dense", _pattern(matrix) if linear else "")


def _changed_layer(layer: Any, spec: Spec, look: bool) -> _Layer:
    """A packed layer, or one without some of its channels."""
    if spec["format"] == CHANNELS:
        return _layer_of_channels(layer, spec)
    held = layer.state_dict()
    values = held["weight" if spec["format"] == "dense" else "values"]
    full = spec["full_shape"][0] * spec["full_shape"][1]
    bias = spec["full_shape"][0] if spec["bias"] else 0
    saved_bytes = (full + bias) * values.element_size() - sum(tensor.nbytes for tensor in held.values())
    n, m = spec.get("block", (1, 1))
    form = Format(spec["format"], (n, m), spec.get("run", n))
    pattern = _pattern_of_changed(layer, form) if look else ""
    return _Layer(full, int(values.count_nonzero()), str(form), pattern, saved_bytes)


def _layer_of_channels(layer: Any, spec: Spec) -> _Layer:
    """A convolution without some of its channels, or what follows one and multiplies nothing itself."""
    full = {name: math.prod(shape) for name, shape in full_tensors(spec).items()}
    saved = sum((full[name] - getattr(layer, name).numel()) * getattr(layer, name).element_size() for name in full)
    if op_type(layer) != "Conv":
        return _Layer(0, 0, "", saved_bytes=saved)
    return _Layer(full["weight"], int(layer.weight.count_nonzero()), "dense", "", saved)


def _pattern_of_changed(layer: Any, form: Format) -> str:
    n, m = form.block
    if form.kind == "dense":
        return _pattern(matrix_of(layer)) or "channels"
    if form.kind == "2:4":
        return "2:4"
    if (form.run, m) == (1, 1):  # single weights may be how another pattern is kept
        return _pattern(layer.to_linear().weight.detach())
    return f"{form.run}x1" if m == 1 else f"{n}x{m}"


def _pattern(matrix: Tensor) -> str:
    """The coarsest pattern that a matrix `[out, in]` is zero in, or an empty string where hardly any is."""
    zeros = matrix.numel() - int(matrix.count_nonzero())
    return "" if zeros <= BY_CHANCE * matrix.numel() else pattern_of(matrix.unsqueeze(1))[0]


def _tensor_bytes(file: Path) -> int:
    """Of a safetensors file, without its header and the length of that."""
    with file.open("rb") as opened:
        return file.stat().st_size - 8 - int.from_bytes(opened.read(8), "little")


def _head(model: Any, layers: list[_Layer], notes: CardNotes) -> str:
    name = notes.base_model or str(getattr(model.config, "_name_or_path", ""))
    is_name = _HUB_NAME.fullmatch(name) is not None and not Path(name).exists()
    head: dict[str, Any] = {"base_model": name} if is_name else {}
    # the most frequent alone: others may be what removed channels left of it
    seen = Counter(layer.pattern for layer in layers if layer.pattern).most_common(1)
    pattern = notes.pattern or (seen[0][0] if seen else "")
    tags = ["trisparse", *(["pruned", pattern] if pattern else [])]
    head |= {"library_name": "transformers", "tags": tags}
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n"


def _body(model: nn.Module, layers: list[_Layer], stored: int, notes: CardNotes) -> str:
    name, module = type(model).__name__, type(model).__module__
    full, kept = sum(layer.full for layer in layers), sum(layer.kept for layer in layers)
    dense = stored + sum(layer.saved_bytes for layer in layers)
    seen = "pattern of the zeros", _counted(layer.pattern for layer in layers) or "none"
    rows = [
        ("pattern", notes.pattern) if notes.pattern else seen,
        ("zeros of what multiplies", f"{1 - kept / max(full, 1):.4f} of {full:,} weights, removed channels included"),
        ("bytes, dense", f"{dense:,}"),
        ("bytes of these files", f"{stored:,} ({stored / max(dense, 1):.2f} of dense)"),
        ("layers as they are stored", _counted(layer.format for layer in layers)),
    ]
    parts = [f"# {name}", _table("what lies here", "counted in the files", rows)]
    if notes.metrics:
        values = [(metric, _number(value)) for metric, value in notes.metrics.items()]
        parts.append(f"## Metrics\n\n{_table('metric', f'of {notes.metrics_of}', values)}")
    packed = any(layer.format != "dense" or layer.saved_bytes for layer in layers)
    parts.append(f"## How to load it\n\n{_loading(name, module, packed)}")
    return "\n\n".join(parts) + f"\n\nWritten by trisparse, with torch {torch.__version__}.\n"


def _loading(name: str, module: str, packed: bool) -> str:
    lines = ["import trisparse  # lets transformers read packed layers"] if packed else []
    lines += [f"from {'transformers' if module.startswith('transformers.') else module} import {name}", ""]
    lines += [f'model = {name}.from_pretrained("...")  # this folder, or its name on the hub']
    warning = "\n\nWithout trisparse transformers gives packed layers random weights." if packed else ""
    return "```python\n" + "\n".join(lines) + "\n```" + warning


def _counted(words: Iterator[str]) -> str:
    """`12 4x1, 2 dense`: the most frequent first, empty ones not."""
    return ", ".join(f"{count} {word}" for word, count in Counter(filter(None, words)).most_common())


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _table(left: str, right: str, rows: list[tuple[str, str]]) -> str:
    lines = [(left, right), ("---", "---"), *rows]
    return "\n".join("| {} | {} |".format(*(cell.replace("|", "\\|") for cell in line)) for line in lines)
