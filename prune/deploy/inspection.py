"""What a checkpoint holds, layer by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from trisparse.prune.deploy.channel_spec import CHANNELS, full_tensors
from trisparse.prune.deploy.checkpoint import check_folder, empty_model
from trisparse.prune.deploy.checkpoint_files import Headers, read_headers, weight_files
from trisparse.prune.deploy.formats import Format, formats_of
from trisparse.prune.deploy.layer_spec import Spec, tensors_of
from trisparse.prune.deploy.saved_names import names_in_model
from trisparse.prune.layers.modules import is_hf_conv1d, op_type
from trisparse.prune.speed_model import expected_gain_on_cpu

_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "U8": 1, "I8": 1, "BOOL": 1}
TOKENS = (1, 512)  # of the speeds that are expected


@dataclass
class Row:
    """A layer of a checkpoint: what is stored of its weight."""

    name: str
    shape: list[int]
    format: str
    stored: float
    nbytes: int
    dense_bytes: int
    speed: str = ""
    note: str = ""

    def cells(self) -> list[str]:
        """As text."""
        share = self.nbytes / max(self.dense_bytes, 1)
        size = f"{self.nbytes / 1024:.0f}"
        return [
            self.name,
            "x".join(map(str, self.shape)),
            self.format,
            f"{self.stored:.2f}",
            size,
            f"{share:.2f}",
            self.speed,
            self.note,
        ]


def packed_rows(folder: Path) -> list[Row]:
    """Of a compressed checkpoint, which is checked: the layers that are not as their model makes them."""
    headers, layers = check_folder(folder)
    rows = []
    for name, spec in layers.items():
        if spec["format"] == CHANNELS:
            rows += _convolution_row(name, spec, headers)
            continue
        (high, wide), (n, m) = spec["shape"], spec.get("block", (1, 1))
        parts = [key for key in tensors_of(spec) if key != "bias"]
        nbytes = sum(_size(headers[f"{name}.{key}"]) for key in parts)
        full = spec["full_shape"][0] * spec["full_shape"][1] * _BYTES[headers[f"{name}.{parts[0]}"][2]]
        stored = {"dense": 1.0, "2:4": 0.5}.get(spec["format"], spec.get("slots", 0) * n * m / max(high * wide, 1))
        kind = spec["format"] if "block" not in spec else f"{n}x{m}"
        fewer = [high, wide] != spec["full_shape"]
        note = f"channels removed from {'x'.join(map(str, spec['full_shape']))}" if fewer else ""
        form = Format(spec["format"], (n, m), n, stored, nbytes)
        itemsize, is_conv = _BYTES[headers[f"{name}.{parts[0]}"][2]], "kernel" in spec
        speed = "" if is_conv else expected_speed(form, high, wide, itemsize)  # which knows no convolutions
        rows.append(Row(name, [high, wide], kind, stored, nbytes, full, speed, note))
    return rows


def _convolution_row(name: str, spec: Spec, headers: Headers) -> list[Row]:
    """A convolution without some of its channels; nothing for batch norms and the like."""
    shape = spec["tensors"].get("weight", [])
    if len(shape) < 3:
        return []
    full = full_tensors(spec)["weight"]
    dense = math.prod(full) * _BYTES[headers[f"{name}.weight"][2]]
    note = f"channels removed from {'x'.join(map(str, full))}"
    return [Row(name, shape, "dense", 1.0, _size(headers[f"{name}.weight"]), dense, "", note)]


def expected_speed(form: Format, rows: int, cols: int, itemsize: int) -> str:
    """How many times as fast as dense a CPU should be, for each of TOKENS; empty for a dense layer."""
    if form.kind == "dense":
        return ""
    parts = form.kind, form.block, form.stored, form.nbytes
    return " / ".join(f"~{expected_gain_on_cpu(*parts, rows, cols, tokens, itemsize):.1f}x" for tokens in TOKENS)


def dense_rows(folder: Path) -> list[Row]:
    """Of any other: linear layers, and the smallest format that each could have."""
    from safetensors import safe_open

    headers, rows = read_headers(weight_files(folder)), []
    model, names, made = empty_model(folder), {key: key for key in headers}, {}
    if model is not None:
        names = names_in_model(model, headers, model.state_dict())
        made = {name: layer for name, layer in model.named_modules() if op_type(layer) == "Linear"}
    for key, (path, shape, dtype) in sorted(headers.items()):
        name, _, kind = names.get(key, "").rpartition(".")
        if len(shape) != 2 or kind != "weight" or (made and name not in made):
            continue
        with safe_open(path, "pt") as file:
            weight = file.get_tensor(key)
        if name in made and is_hf_conv1d(made[name]):
            weight = weight.t()
        forms = formats_of(weight) if weight.is_floating_point() else []
        note, speed = "", ""
        if forms:
            note = f"could be {forms[0]}, {forms[0].nbytes / max(weight.nbytes, 1):.2f} of dense"
            speed = expected_speed(forms[0], weight.shape[0], weight.shape[1], weight.element_size())
        kept = float((weight != 0).float().mean()) if weight.numel() else 0.0
        size = _size((path, shape, dtype))
        rows.append(Row(name, list(weight.shape), "dense", kept, size, size, speed, note))
    return rows


def _size(header: tuple[Path, list[int], str]) -> int:
    return math.prod(header[1]) * _BYTES.get(header[2], 1)
