"""A model is run, and the channels that its layers make are followed through every operator to all that read them."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from trisparse.prune.channels.channel_rules import IN_PLACE, RULES, Call, Channels, Stays
from trisparse.prune.channels.layer_channels import Read, is_known, sides_of, through
from trisparse.prune.channels.obstacles import obstacle
from trisparse.prune.layers.modules import interference

BLOCKED = "stays: "  # begins reasons that lie in what was done to a module, not in what the model computes


class ChannelTrace(TorchDispatchMode):
    """What a forward does with channels.

    Attributes:
        sides: (layer, `out`, `in` or `all`) -> first id and number of ids.
        joined: pairs of lists of ids that are the same channels.
        stuck: ids, and what reads them and needs them all.
        reads: layer -> what its columns read.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.count = 0
        self.sides: dict[tuple[str, str], tuple[int, int]] = {}
        self.joined: list[tuple[Tensor, Tensor]] = []
        self.stuck: list[tuple[Tensor, str]] = []
        self.reads: dict[str, Read] = {}
        self._known: Any = WeakIdKeyDictionary()  # tensor -> Channels
        self._within: list[tuple[str, nn.Module]] = []  # modules that are being called
        self._in_layer = False  # whose own operators are not looked at
        self._weights: dict[int, list[tuple[str, nn.Module, nn.Parameter]]] = {}  # by storage
        self._obstacles = {name: obstacle(layer) for name, layer in model.named_modules() if is_known(layer)}
        for name in self._obstacles:
            layer = model.get_submodule(name)
            for parameter in () if interference(layer) else layer.parameters(recurse=False):  # hooks may read their own
                self._weights.setdefault(_storage(parameter), []).append((name, layer, parameter))

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """The model's forwards are followed inside."""
        hooks: list[Any] = []
        modules = [(m, name, interference(m)) for name, m in self.model.named_modules() if not _is_script(m)]
        try:
            for module, name, why in modules:
                enter, leave = (functools.partial(call, name, why) for call in (self._enter, self._leave))
                hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True))
                hooks.append(module.register_forward_hook(leave, with_kwargs=True, always_call=True))
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def close(self) -> None:
        """What is still there of the tensors belongs to the outputs, or to what the model remembers."""
        gc.collect()
        for channels in self._known.values():
            self.stuck.append((channels.ids, "the model gives them out"))

    def ids(self, layer: str, side: str, count: int = 0) -> Tensor:
        """Of the channels on one side of a layer; `count` where it may be new."""
        if (layer, side) not in self.sides:
            self.sides[layer, side] = self.count, count
            self.count += count
        first, count = self.sides[layer, side]
        return torch.arange(first, first + count, device="cpu")

    def join(self, a: Tensor, b: Tensor) -> None:
        """These are the same channels, pair by pair."""
        self.joined.append((a, b))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not self._in_layer:
            self._see(func, args, kwargs, out)
        return out

    def _see(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        for tensor in tensors:
            self._see_weight(tensor)
        found, name = [t for t in tensors if t in self._known], func._schema.name.removeprefix("aten::")
        if not found or name.endswith("_like") or name.startswith("new_"):  # the last take but the shape
            return
        call = Call(func, args, kwargs, out, self._channels, self.join)
        try:
            rule = RULES.get(name)
            if func._schema.is_mutable:
                plain = name.removesuffix("_")
                rule = RULES[plain] if name != plain and plain in IN_PLACE and self._is_alone(args[0]) else None
            if rule is None:
                raise Stays("{op} in {where} reads them")
            result, outs = rule(call), out if isinstance(out, (tuple, list)) else [out]
            for tensor, channels in zip(outs, result if isinstance(result, list) else [result], strict=True):
                self._know(tensor, channels)
        except Stays as stays:
            self._stick(found, self._reason(str(stays), name))
        except Exception:  # a rule that does not fit this call: nothing is known then
            self._stick(found, self._reason("{op} in {where} reads them", name))

    def _channels(self, value: Any) -> Channels | None:
        return self._known.get(value) if isinstance(value, Tensor) else None

    def _know(self, tensor: Tensor, channels: Channels) -> None:
        assert tensor.shape[channels.dim] == len(channels.ids), tensor.shape
        self._known[tensor] = channels

    def _is_alone(self, tensor: Tensor) -> bool:
        """Whether a tensor may be written to: it is followed, and nothing else that is shows the same memory."""
        same = [t for t in self._known if _storage(t) == _storage(tensor)]
        return len(same) == 1 and same[0] is tensor

    def _see_weight(self, tensor: Tensor) -> None:
        """A layer's weight that an operator outside the layer reads."""
        for name, layer, parameter in self._weights.get(_storage(tensor), ()):
            if 0 <= tensor.data_ptr() - parameter.data_ptr() < parameter.nbytes:
                reason = f"its weight is read outside of its own forward, in {self._where()}"
                self.stuck += [(self.ids(name, side, count), reason) for side, count in sides_of(layer).items()]

    def _stick(self, tensors: list[Tensor], reason: str) -> None:
        for tensor in tensors:
            if channels := self._known.get(tensor):
                self.stuck.append((channels.ids, reason))
                del self._known[tensor]

    def _where(self) -> str:
        name, module = self._within[-1] if self._within else ("", self.model)
        return f"{name} ({type(module).__name__})" if name else f"the model ({type(module).__name__})"

    def _reason(self, text: str, op: str) -> str:
        module = self._within[-1][1] if self._within else self.model
        if not list(module.children()) and module is not self.model:
            text = text.replace("{op} in {where}", "{where}")
        if text == "{where} splits them" and "attention" in type(module).__name__.lower():
            text += " into heads"
        return text.format(op=_WORDS.get(op, op.strip("_")), where=self._where())

    def _enter(self, name: str, why: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._within.append((name, module))
        if why:
            self._block((args, kwargs), f"{BLOCKED}{name}: {why}")
        self._in_layer = self._in_layer or is_known(module)

    def _leave(self, name: str, why: str, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        if is_known(module):
            self._pass(name, module, args, kwargs, out)
            self._in_layer = False
        if why:
            self._block(out, f"{BLOCKED}{name}: {why}")
        self._within.pop()

    def _block(self, values: Any, reason: str) -> None:
        """Tensors that a module with hooks takes or gives; they are followed on, so that the chain is known."""
        found = [self._known.get(t) for t in tree_leaves(values) if isinstance(t, Tensor)]
        self.stuck += [(channels.ids, reason) for channels in found if channels]

    def _pass(self, name: str, layer: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        """Channels end in a layer, and others begin, or they go through it one by one."""
        ids = {side: self.ids(name, side, count) for side, count in sides_of(layer).items()}
        if why := self._obstacles[name]:
            self.stuck += [(some, f"{BLOCKED}{name}: {why}") for some in ids.values()]
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        source = tensors[0] if len(tensors) == 1 else None
        channels = None if source is None else self._known.get(source)
        try:
            if not isinstance(out, Tensor) or source is None:
                raise Stays(f"{name} ({type(layer).__name__}) is called with more than a tensor, and reads them")
            read, made = through(layer, source, channels, ids)
        except Exception as error:  # also what a layer raises that has no plain weight
            where = f"{name} ({type(layer).__name__})"
            self._stick(tensors, (str(error) if isinstance(error, Stays) else "{where} reads them").format(where=where))
            own = "makes them in groups" if getattr(layer, "groups", 1) > 1 else "needs all that it makes"
            self.stuck += [(some, f"{where} {own}") for some in ids.values()]
            return
        for side in ids.keys() - {"out"}:
            if channels is None:
                self.stuck.append((ids[side], "what it reads keeps all of its channels"))
            else:
                self.join(channels.ids, ids[side])
        if read is not None:
            old = self.reads.get(name)
            same = read.fixed if old is None else old.fixed & read.fixed & (old.values == read.values)
            self.reads[name] = Read(same, read.values)
        if made is not None:
            self._know(out, made)
        elif "out" in ids:
            self.stuck.append((ids["out"], "it is the only one"))


_WORDS = {
    "cat": "a concatenation", "mm": "a product", "addmm": "a product", "bmm": "a product", "baddbmm": "a product",
    "mean": "a mean", "sum": "a sum", "amax": "a maximum", "convolution": "a convolution", "_softmax": "a softmax",
    "native_layer_norm": "a layer norm", "native_group_norm": "a group norm", "copy_": "a copy into another tensor",
}  # fmt: skip


def _is_script(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)  # takes no hooks; its operators are seen all the same


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
