"""What a checkpoint's config may say of its layers: everything is checked before anything is made of it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from trisparse.prune.deploy.channel_spec import CHANNELS, is_size, trouble_of_channels
from trisparse.prune.deploy.layer_spec import METHOD, VERSION, Spec, is_ours
from trisparse.prune.errors import PruningError
from trisparse.sparse_ops.activations import ACTIVATIONS
from trisparse.sparse_ops.blocks.packed_blocks import check_block

_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_entry(entry: Any, where: str) -> dict[str, Spec]:
    """The layers of a `quantization_config`; PruningError if it is not one that this version wrote."""
    if not isinstance(entry, dict) or not is_ours(entry):
        raise PruningError(f"{where}: quantization_config: want quant_method {METHOD!r}, got {entry!r:.60}")
    version = entry.get("format_version")
    if type(version) is not int or version != VERSION:
        raise PruningError(
            f"{where}: format_version: want {VERSION}, got {version!r:.60}; update trisparse, or compress anew"
        )
    layers = entry.get("layers")
    if not isinstance(layers, dict):
        raise PruningError(f"{where}: layers: want a mapping of names, got {layers!r:.60}")
    for name, spec in layers.items():
        if trouble := _trouble(spec):
            raise PruningError(f"{where}: layers: {name}: is damaged or of another version: {trouble}")
    if "files" in entry and not _are_digests(entry["files"]):
        raise PruningError(f"{where}: files: want the SHA-256 of each file, got {entry['files']!r:.60}")
    return layers


def _are_digests(files: Any) -> bool:
    values = list(files.values()) if isinstance(files, dict) else []
    return bool(values) and all(isinstance(value, str) and _SHA256.fullmatch(value) for value in values)


def _trouble(spec: Any) -> str:
    """The first field that is wrong, or an empty string."""
    kind = spec.get("format") if isinstance(spec, dict) else None
    if kind == CHANNELS:
        return trouble_of_channels(spec)
    if not isinstance(kind, str) or kind not in _FIELDS:
        return f"format: want {', '.join((*_FIELDS, CHANNELS))}, got {kind!r:.60}"
    checks = {"format": lambda _: True, **_COMMON, **_FIELDS[kind]}
    if "parts" in spec:  # only where units come in several, as gates and what they open do in one projection
        checks["parts"] = _is_shape
    if "kernel" in spec and kind != "dense":  # only of a convolution
        checks |= {"kernel": _is_kernel, "channels_last": _is_bool}
    if "activation" in spec and kind != "dense":  # only where a packed layer applies it
        checks["activation"] = lambda name: isinstance(name, str) and name in ACTIVATIONS and name != "none"
    if spec.keys() != checks.keys():
        return f"want the fields {', '.join(checks)}, got {', '.join(map(str, spec))}"
    for field, check in checks.items():
        if not check(spec[field]):
            return f"{field}: got {spec[field]!r:.60}"
    if any(size > full for size, full in zip(spec["shape"], spec["full_shape"], strict=True)):
        return f"full_shape: want at least the shape {spec['shape']}, got {spec['full_shape']}"
    for size, full, parts in zip(spec["shape"], spec["full_shape"], spec.get("parts", (1, 1)), strict=True):
        if parts < 1 or size % parts or full % parts:
            return f"parts: want divisors of {spec['shape']} and {spec['full_shape']}, got {spec['parts']}"
    if any(size % math.prod(spec.get("kernel", (1,))) for size in (spec["shape"][1], spec["full_shape"][1])):
        return (
            f"kernel: want a divisor of the columns of {spec['shape']} and {spec['full_shape']}, got {spec['kernel']}"
        )
    if kind == "2:4" and spec["shape"][1] % 4:
        return f"shape: want columns in fours for 2:4, got {spec['shape']}"
    n, run = spec.get("block", (1, 1))[0], spec.get("run", 1)
    if n % run or (kind == "blocks" and run != n):
        return f"run: want a divisor of {n}, for blocks {n} itself, got {run}"
    return ""


def _is_shape(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(is_size, value))


def _is_kernel(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and 1 <= len(value) <= 3 and all(is_size(size) and size for size in value)


def _is_block(value: Any, of_vectors: bool) -> bool:
    if not _is_shape(value) or (value[1] == 1) != of_vectors:
        return False
    try:
        check_block(tuple(value))
    except ValueError:
        return False
    return True


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


_Check = Callable[[Any], bool]
_COMMON: dict[str, _Check] = {"shape": _is_shape, "full_shape": _is_shape, "bias": _is_bool, "conv1d": _is_bool}
_STORED: dict[str, _Check] = {"run": lambda run: is_size(run) and run > 0, "slots": is_size}
_FIELDS: dict[str, dict[str, _Check]] = {
    "dense": {},
    "2:4": {},
    "vectors": {"block": lambda block: _is_block(block, True), **_STORED},
    "blocks": {"block": lambda block: _is_block(block, False), **_STORED},
}
