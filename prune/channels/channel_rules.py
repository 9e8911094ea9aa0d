"""What torch's operators do with channels: which they pass on one by one, and what becomes of constant ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Channels(NamedTuple):
    """The channels of a tensor.

    Attributes:
        dim: of the tensor, along which they lie.
        ids: int64 `[channels]`, of the trace.
        fixed: bool `[channels]`, those that have one value everywhere, whatever the model's input.
        values: `[channels]`, that value, in the tensor's dtype.
    """

    dim: int
    ids: Tensor
    fixed: Tensor
    values: Tensor

    def pick(self, index: Tensor, dim: int) -> Channels:
        """These channels, along another dimension."""
        return Channels(dim, self.ids[index], self.fixed[index], self.values[index])


class Stays(Exception):  # noqa: N818 (no error: it says what becomes of channels)
    """Channels are read in a way that needs all of them; `{where}` stands for the module that does."""


class Call(NamedTuple):
    """An operator's call.

    Attributes:
        func: of torch.
        args: its positions.
        kwargs: its keywords.
        out: what it gave.
        of: the channels of a tensor, None where it has none that are known.
        join: says that two lists of ids are the same channels.
    """

    func: Any
    args: Sequence[Any]
    kwargs: dict[str, Any]
    out: Any
    of: Callable[[Any], Channels | None]
    join: Callable[[Tensor, Tensor], None]


Rule = Callable[[Call], Any]  # -> Channels of the output, or a list with one entry for each output


def _each(call: Call) -> Channels:
    """An elementwise function of one tensor and of scalars."""
    channels, args = None, list(call.args)
    for index, arg in enumerate(args):
        if isinstance(arg, Tensor):
            if channels is not None or (channels := call.of(arg)) is None:
                raise Stays("{op} in {where} reads them")
            args[index] = channels.values.clone()
    assert channels is not None
    values, out = call.func(*args, **call.kwargs), call.out
    if isinstance(out, (tuple, list)):
        values, out = values[0], out[0]
    return channels._replace(values=values.to(out.dtype))


def _copied(call: Call) -> Channels:
    channels = call.of(call.args[0])
    assert channels is not None
    return channels._replace(values=channels.values.to(call.out.dtype))


def _moved(call: Call) -> Any:
    """Views and all else that only moves numbers: the same is done to the channels' indices."""
    channels = call.of(call.args[0])
    if channels is None or call.func._overloadname == "dtype":
        raise Stays("{op} in {where} reads them")
    source = call.args[0]
    count, trailing = len(channels.ids), source.dim() - channels.dim - 1
    probe = torch.arange(count, dtype=torch.int32, device=source.device)
    probe = probe.view(-1, *[1] * trailing).expand(source.shape)
    is_view = call.func._schema.name in ("aten::view", "aten::_unsafe_view")
    moved = probe.reshape(call.args[1]) if is_view else call.func(probe, *call.args[1:], **call.kwargs)
    if isinstance(moved, Tensor):
        return _along(channels, moved)
    return [_along(channels, part) for part in moved]


def _along(channels: Channels, moved: Tensor) -> Channels:
    """Channels by where their indices are now; they have to lie along one dimension."""
    varying = [d for d in range(moved.dim()) if not torch.equal(moved.narrow(d, 0, 1).expand_as(moved), moved)]
    if len(varying) != 1:
        raise Stays("{where} splits them" if len(varying) > 1 else "{where} takes single ones of them")
    line = moved.movedim(varying[0], -1).reshape(-1, moved.shape[varying[0]])[0].long()
    return channels.pick(line, varying[0])


def _sum_of(call: Call) -> Channels:
    channels, other, is_wide = _operands(call)
    if isinstance(other, Tensor):
        if (more := call.of(other)) is not None and torch.equal(more.ids, channels.ids):
            return _with_itself(call, channels, more)
        if is_wide:
            what = "a residual sum" if more is not None or other.shape == call.out.shape else "a sum"
            raise Stays(what + " in {where} reads them")
        return channels._replace(fixed=torch.zeros_like(channels.fixed))
    return _each(call)


def _product_of(call: Call) -> Channels:
    channels, other, is_wide = _operands(call)
    if not isinstance(other, Tensor):
        return _each(call)
    is_quotient = "div" in call.func._schema.name
    if (more := call.of(other)) is not None:
        if is_quotient and torch.equal(more.ids, channels.ids):
            return _with_itself(call, channels, more)
        if is_quotient:
            raise Stays("a quotient in {where} reads them")
        return multiplied(channels, more, call.join)
    if is_wide:
        raise Stays("a product with what no layer makes, in {where}, reads them")
    zero = channels.fixed & (channels.values == 0)
    return channels._replace(fixed=zero & False if is_quotient else zero)


def _with_itself(call: Call, a: Channels, b: Channels) -> Channels:
    """Two tensors of the same channels, as in GELU by tanh."""
    return a._replace(fixed=a.fixed & b.fixed, values=call.func(a.values.clone(), b.values, **call.kwargs))


def _operands(call: Call) -> tuple[Channels, Any, bool]:
    """Channels of one operand, as they lie in the output; the other operand, and whether it has more than one too."""
    a, b = call.args[:2]
    channels, other = call.of(a), b
    if channels is None:
        channels, other, a = call.of(b), a, b
    assert channels is not None
    behind = a.dim() - channels.dim  # dimensions are lined up at the last
    is_wide = isinstance(other, Tensor) and other.dim() >= behind and other.shape[-behind] > 1
    more = call.of(other)
    if more is not None and other.dim() - more.dim != behind:
        raise Stays("{op} in {where} reads them along two axes")
    return channels._replace(dim=call.out.dim() - behind), other, is_wide


def multiplied(a: Channels, b: Channels, join: Callable[[Tensor, Tensor], None]) -> Channels:
    """A product, channel by channel: one that is zero needs no other."""
    join(a.ids, b.ids)
    nothing = (a.fixed & (a.values == 0)) | (b.fixed & (b.values == 0))
    return a._replace(fixed=(a.fixed & b.fixed) | nothing, values=torch.where(nothing, 0, a.values * b.values))


def _glu(call: Call) -> Channels:
    channels = call.of(call.args[0])
    assert channels is not None
    dim = (call.args[1] if len(call.args) > 1 else -1) % call.args[0].dim()
    if dim != channels.dim:
        return channels._replace(fixed=torch.zeros_like(channels.fixed))
    first, gate = torch.arange(len(channels.ids), device=channels.ids.device).chunk(2)
    gates = channels.pick(gate, dim)
    return multiplied(channels.pick(first, dim), gates._replace(values=gates.values.sigmoid()), call.join)


def _reduced(call: Call) -> Channels:
    """A mean or a sum over other dimensions."""
    channels, source = call.of(call.args[0]), call.args[0]
    assert channels is not None
    given = call.args[1] if len(call.args) > 1 else None
    dims = [] if given is None else [d % source.dim() for d in ([given] if isinstance(given, int) else given)]
    if not dims or channels.dim in dims:
        raise Stays("{op} over them in {where} reads them")
    keepdim = call.out.dim() == source.dim()
    fixed = channels.fixed & (channels.values == 0) if "sum" in call.func._schema.name else channels.fixed
    dim = channels.dim if keepdim else channels.dim - sum(d < channels.dim for d in dims)
    return channels._replace(dim=dim, fixed=fixed, values=channels.values.to(call.out.dtype))


def _pooled(call: Call) -> Any:
    """Over the last one, two or three dimensions, as the name says; an average takes padding in."""
    channels, source, name = call.of(call.args[0]), call.args[0], call.func._schema.name
    assert channels is not None
    if channels.dim >= source.dim() - int(re.findall(r"(\d)d", name)[0]):
        raise Stays("{op} in {where} reads them")
    is_padded = name.startswith("aten::avg") and any(_numbers(call.args[3:4]))
    fixed = channels.fixed & (channels.values == 0) if is_padded else channels.fixed
    channels = channels._replace(fixed=fixed)
    return [channels, channels._replace(fixed=fixed & False)] if isinstance(call.out, (tuple, list)) else channels


def _numbers(value: Any) -> list[int]:
    return [n for item in value for n in (item if isinstance(item, (tuple, list)) else [item])]


def _filled(call: Call) -> Channels:
    """A value in the place of some numbers, or around them."""
    channels, source, value = call.of(call.args[0]), call.args[0], 0
    if channels is None:
        raise Stays("{op} in {where} reads them")
    if "pad" in call.func._schema.name:
        value = call.args[2] if len(call.args) > 2 else 0
        if any(call.args[1][2 * (source.dim() - 1 - channels.dim) :][:2]):
            raise Stays("{op} in {where} reads them")
    else:
        mask, value, behind = *call.args[1:3], source.dim() - channels.dim
        if isinstance(value, Tensor) or (mask.dim() >= behind and mask.shape[-behind] > 1) or call.of(mask):
            raise Stays("{op} in {where} reads them")
    return channels._replace(fixed=channels.fixed & (channels.values == value))


def _restrided(call: Call) -> Channels:
    """Other strides for sizes of one, as a global average pool gives them where channels are the fastest."""
    channels, source = call.of(call.args[0]), call.args[0]
    if channels is None or tuple(call.args[1]) != source.shape or not source.is_contiguous():
        raise Stays("{op} in {where} reads them")
    return channels


_EACH = [
    "relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "hardtanh", "hardswish", "hardsigmoid", "leaky_relu", "elu",
    "softplus", "mish", "abs", "neg", "exp", "expm1", "erf", "sin", "cos", "sqrt", "rsqrt", "reciprocal", "log",
    "log1p", "pow", "clamp", "clamp_min", "clamp_max", "threshold", "hardshrink", "softshrink", "log_sigmoid",
    "log_sigmoid_forward", "square", "sign", "rsub",
]  # fmt: skip
_MOVED = [
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "unsqueeze", "squeeze", "expand", "slice",
    "select", "split", "split_with_sizes", "unbind", "flip", "roll", "repeat", "unfold", "narrow", "pixel_shuffle",
    "pixel_unshuffle", "index", "index_select",
]  # fmt: skip
_POOLED = [
    "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d", "adaptive_max_pool2d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "upsample_linear1d", "upsample_bilinear2d", "reflection_pad1d", "reflection_pad2d", "replication_pad1d",
    "replication_pad2d",
]  # fmt: skip
RULES: dict[str, Rule] = {
    **dict.fromkeys(_EACH, _each),
    **dict.fromkeys(["clone", "detach", "alias", "_to_copy", "lift_fresh", "contiguous"], _copied),
    **dict.fromkeys(_MOVED, _moved),
    **dict.fromkeys(["add", "sub"], _sum_of),
    **dict.fromkeys(["mul", "div"], _product_of),
    "glu": _glu,
    **dict.fromkeys(["mean", "sum", "amax"], _reduced),
    **dict.fromkeys(_POOLED, _pooled),
    **dict.fromkeys(["constant_pad_nd", "masked_fill"], _filled),
    "as_strided": _restrided,
}
IN_PLACE = {
    *_EACH,
    "add",
    "sub",
    "mul",
    "div",
    "masked_fill",
    "as_strided",
}  # also where it writes to its first argument
