"""Which format a layer is kept in: the smallest, or the fastest by measurement or by a model."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trisparse.kernels.cpu.launch import runs_packed
from trisparse.prune.deploy.compression_report import CompressedLayer
from trisparse.prune.deploy.conv_inputs import ConvInput, input_with
from trisparse.prune.deploy.formats import Format, as_linear, formats_of, matrix_of, pack_layer
from trisparse.prune.layers.modules import op_type
from trisparse.prune.speed_model import GAIN, expected_gain, expected_gain_on_cpu
from trisparse.prune.timing import TimingCache, time_pair
from trisparse.sparse_ops.convolutions.packed_convs import is_channels_last
from trisparse.sparse_ops.convolutions.windows import geometry_of

_FASTER, _NEVER_BELOW = 1.03, 0.97  # than dense: on the whole, and for any number of tokens
_HOPELESS = 0.7  # expected gain below which nothing is measured
_NEARLY = 1.25  # times the smallest: formats that may turn out smaller still, once rows are grouped anew


class Chooser:
    """Picks formats of layers, and remembers what it measured; arguments as `compress` takes them."""

    def __init__(self, prefer: str, tokens: list[int], measure: bool, cache: Path | None) -> None:
        self.prefer, self.tokens, self.measure, self.folder = prefer, tokens, measure, cache

    def choose(
        self, name: str, layer: Any, obstacle: str, seen: ConvInput | None = None
    ) -> tuple[CompressedLayer, nn.Module | None]:
        """The report's row, and the packed layer if the layer does not stay dense; `seen` reaches a convolution."""
        weight = matrix_of(layer)
        zeros = float((weight == 0).float().mean()) if weight.numel() else 0.0
        row = CompressedLayer(name, (len(weight), weight.shape[1]), zeros, "dense", weight.nbytes, weight.nbytes)
        forms = [] if obstacle else formats_of(weight)
        row.reason = obstacle or ("" if forms else "no format is smaller")
        if not forms:
            return row, None
        if self.prefer == "memory":
            return self._smallest(row, layer, weight, forms, seen)
        if not weight.is_cuda and not runs_packed(weight.dtype):
            row.reason = "dense: there is no kernel for it on this CPU"
            return row, None
        if op_type(layer) == "Conv" and not self.measure:
            row.reason = "dense: convolutions are packed where that is timed"
            return row, None
        return self._fastest(row, layer, weight, forms, seen)

    def _smallest(self, row, layer, weight, forms, seen=None) -> tuple[CompressedLayer, nn.Module | None]:
        form, packed = forms[0], pack_layer(layer, forms[0])
        for other in forms[1:]:
            if not other.is_regrouped or other.nbytes > _NEARLY * _weight_bytes(packed):
                continue  # its bytes are known without packing it, or are far off
            candidate = pack_layer(layer, other)
            if _weight_bytes(candidate) < _weight_bytes(packed):
                form, packed = other, candidate
        if _weight_bytes(packed) >= weight.nbytes:
            row.reason = "no format is smaller"
            return row, None
        row.measured = self._measured(layer, packed, form, seen)
        return self._packed(row, packed, layer, form, "the smallest")

    def _fastest(self, row, layer, weight, forms, seen=None) -> tuple[CompressedLayer, nn.Module | None]:
        best: tuple[float, Format, nn.Module | None, dict[int, float]] | None = None
        for form in forms:
            expected = _expected(form, weight, self._counts(layer, seen))
            if statistics.geometric_mean(expected.values()) < (_HOPELESS if self.measure else GAIN):
                continue
            packed = pack_layer(layer, form) if self.measure else None
            gains = expected if packed is None else self._measured(layer, packed, form, seen)
            gain = statistics.geometric_mean(gains.values()) if min(gains.values(), default=0) >= _NEVER_BELOW else 0
            if gain >= (_FASTER if self.measure else GAIN) and (best is None or gain > best[0]):
                best = gain, form, packed, gains
            if self.measure:
                row.rejected[str(form)] = gains
        if best is None:
            row.reason = (
                "dense is faster here" if row.rejected
                else "dense: a static model expects no format to come near, so none was timed" if self.measure
                else "dense: no format promises enough"
            )  # fmt: skip
            return row, None
        _, form, packed, gains = best
        row.rejected.pop(str(form), None)
        row.measured = gains if self.measure else {}
        packed = pack_layer(layer, form) if packed is None else packed
        return self._packed(row, packed, layer, form, "the fastest" if self.measure else "promises to be the fastest")

    def _packed(self, row, packed, layer, form, reason) -> tuple[CompressedLayer, nn.Module]:
        row.format, row.bytes_after, row.reason = str(form), _weight_bytes(packed), reason
        if op_type(layer) != "Conv":  # of which the model of times knows nothing
            row.expected = _expected(form, matrix_of(layer), self.tokens)
        return row, packed

    def _counts(self, layer: Any, seen: ConvInput | None) -> list[int]:
        """Tokens, or positions, that matter."""
        return self.tokens if seen is None else [seen.positions(layer)]

    def _measured(self, layer: Any, packed: nn.Module, form: Format, seen: ConvInput | None) -> dict[int, float]:
        """Tokens, or positions -> how many times faster than dense; 0 where the outputs differ."""
        if not self.measure:
            return {}
        is_conv = op_type(layer) == "Conv"
        dense = layer if is_conv else as_linear(layer)
        cache, gains = TimingCache(self.folder, dense.weight.device), {}
        for count in self._counts(layer, seen):
            shape = "x".join(map(str, dense.weight.shape))
            how = f"{form} {form.nbytes} bytes T={count}"
            given: Any = None
            if is_conv:
                given = seen or input_with(layer, count)
                how += f" {given} {geometry_of(layer)} {is_channels_last(layer.weight)}"
            key = f"{shape} {dense.weight.dtype} bias={dense.bias is not None} {how}"
            times = cache.get(key)
            if times is None:
                x = given.draw(dense.weight) if is_conv else _tokens(dense, count)
                times = time_pair(dense, packed, x)
                cache.put(key, times)
            gains[count] = times["dense_ms"] / times["packed_ms"] if times["equal"] else 0.0
        return gains


def _tokens(linear: nn.Linear, count: int) -> torch.Tensor:
    device, dtype = linear.weight.device, linear.weight.dtype
    generator = torch.Generator(device).manual_seed(0)  # the caller's random numbers stay
    return torch.randn(count, linear.in_features, generator=generator, dtype=torch.float32, device=device).to(dtype)


def _expected(form: Format, weight: torch.Tensor, tokens: Sequence[int]) -> dict[int, float]:
    gain = expected_gain if weight.is_cuda else expected_gain_on_cpu
    rows, cols = weight.shape
    return {
        t: gain(form.kind, form.block, form.stored, form.nbytes, rows, cols, t, weight.element_size()) for t in tokens
    }


def _weight_bytes(packed: nn.Module) -> int:
    tensors = dict((*packed.named_parameters(), *packed.named_buffers()))
    return sum(tensor.nbytes for name, tensor in tensors.items() if name != "bias")
