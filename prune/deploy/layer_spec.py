"""Packed and shrunken layers as a checkpoint's config describes them, and empty layers made from that."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from trisparse.prune.deploy.channel_spec import (
    CHANNELS,
    KINDS,
    full_tensors,
    is_of_channels,
    misfit_of_channels,
    spec_of_channels,
    with_channels,
)
from trisparse.prune.errors import PruningError
from trisparse.prune.layers.modules import is_hf_conv1d, is_plain_conv, op_type, unwrap
from trisparse.sparse_ops import Conv24, ConvBlocks, Linear24, LinearBlocks
from trisparse.sparse_ops.convolutions.windows import Geometry, geometry_of

METHOD, VERSION = "trisparse", 1
Spec = dict[str, Any]


def spec_of(layer: Any) -> Spec | None:
    """What it takes to build a layer's like; None for a layer that is as its model makes it."""
    spec: Spec
    if hasattr(layer, "full_channels"):
        return spec_of_channels(layer)
    if isinstance(layer, LinearBlocks):
        spec = {"format": "vectors" if layer.block[1] == 1 else "blocks", "block": list(layer.block)}
        spec |= {"run": layer.run, "slots": len(layer.values)}
    elif isinstance(layer, Linear24):
        spec = {"format": "2:4"}
    elif hasattr(layer, "full_shape"):
        spec = {"format": "dense"}
    else:
        return None
    shape = list(layer.weight.shape) if spec["format"] == "dense" else [layer.out_features, layer.in_features]
    if getattr(layer, "activation", "none") != "none":
        spec["activation"] = layer.activation
    if isinstance(layer, (Conv24, ConvBlocks)):
        spec |= {"kernel": list(layer.kernel_size), "channels_last": layer.channels_last}
    conv1d = is_hf_conv1d(layer) or getattr(layer, "is_conv1d", False)
    shape = shape[::-1] if is_hf_conv1d(layer) else shape
    full = list(getattr(layer, "full_shape", shape))
    if (parts := list(getattr(layer, "parts", (1, 1)))) != [1, 1]:
        spec["parts"] = parts
    return {**spec, "shape": shape, "full_shape": full, "bias": layer.bias is not None, "conv1d": conv1d}


def describe(model: nn.Module) -> Spec:
    """What became of a compressed model's layers, in plain values: `compress_like` takes it, and a config holds it."""
    found = {name: spec_of(layer) for name, layer in unwrap(model).named_modules()}
    layers = {name: spec for name, spec in found.items() if spec is not None}
    return {"quant_method": METHOD, "format_version": VERSION, "layers": layers}


def note_in_config(model: nn.Module) -> None:
    """Let configs of transformers models say how layers are kept, so that what is saved can be loaded.

    Each model in the module that has a config object of its own, since it may be saved alone.
    """
    check_config(model)
    for part in with_configs(model):
        entry, config = describe(part), part.config
        if entry["layers"]:
            config.quantization_config = entry
        elif is_ours(getattr(config, "quantization_config", None)):
            del config.quantization_config
            for name in ("hf_quantizer", "is_quantized", "quantization_method"):  # what loading set
                part.__dict__.pop(name, None)


def with_configs(model: nn.Module) -> list[Any]:
    """Models of transformers in a module; of several with one config object the outermost."""
    found: dict[int, Any] = {}
    for module in unwrap(model).modules():
        config = vars(module).get("config")  # not what a wrapper passes on
        if hasattr(config, "save_pretrained") and hasattr(module, "save_pretrained"):
            found.setdefault(id(config), module)
    return list(found.values())


def check_config(model: nn.Module) -> None:
    """PruningError for a model whose config says that another method quantized it."""
    for part in with_configs(model):
        entry = getattr(part.config, "quantization_config", None)
        if entry is not None and not is_ours(entry):
            method = entry.get("quant_method") if isinstance(entry, dict) else getattr(entry, "quant_method", entry)
            raise PruningError(
                f"model: its config has a quantization_config of {getattr(method, 'value', method)!r:.60}; "
                "want a model that no other method has quantized"
            )


def is_ours(entry: Any) -> bool:
    """Whether a `quantization_config`, as a dict or as an object, is of this package."""
    return (entry.get("quant_method") if isinstance(entry, dict) else getattr(entry, "quant_method", None)) == METHOD


def kind_of(spec: Spec) -> str:
    """Of what a spec is, in words."""
    if spec["format"] == CHANNELS:
        return KINDS
    return "convolution without groups" if "kernel" in spec else "linear layer"


def is_of_kind(spec: Spec, layer: nn.Module) -> bool:
    """Whether a spec may be of such a layer, as a model makes it."""
    if spec["format"] == CHANNELS:
        return is_of_channels(layer)
    return is_plain_conv(layer) if "kernel" in spec else op_type(layer) == "Linear"


def misfit(spec: Spec, layer: Any) -> str:
    """What of a spec is not as in the layer of its kind that a model makes, or an empty string."""
    if spec["format"] == CHANNELS:
        return misfit_of_channels(spec, layer)
    is_conv1d = is_hf_conv1d(layer)
    full = list(layer.weight.shape[::-1] if is_conv1d else layer.weight.shape)
    if "kernel" in spec:
        if spec["kernel"] != list(layer.kernel_size):
            return f"kernel: want {list(layer.kernel_size)}, as the model has it, got {spec['kernel']}"
        full = [full[0], math.prod(full[1:])]
    for field, own in (("full_shape", full), ("conv1d", is_conv1d), ("bias", layer.bias is not None)):
        if spec[field] != own:
            return f"{field}: want {own}, as the model has it, got {spec[field]}"
    return ""


def tensors_of(spec: Spec) -> dict[str, tuple[list[int], torch.dtype | None]]:
    """Name -> shape and dtype of what a file holds of a layer; None for the dtype of its weight."""
    found: dict[str, tuple[list[int], torch.dtype | None]]
    if spec["format"] == CHANNELS:
        return {name: (shape, None) for name, shape in spec["tensors"].items()}
    rows, cols = spec["shape"]
    if spec["format"] == "dense":
        found = {"weight": ([cols, rows] if spec.get("conv1d") else [rows, cols], None)}
    elif spec["format"] == "2:4":
        found = {"values": ([rows, cols // 2], None), "bitmask": ([rows, -(-cols // 8)], torch.uint8)}
    else:
        (n, m), slots = spec["block"], spec["slots"]
        groups, narrow = -(-rows // n), torch.int16 if -(-cols // m) < 1 << 15 else torch.int32
        found = {"values": ([slots, n, m], None), "columns": ([slots], narrow)}
        found |= {"pointers": ([groups + 1], torch.int32), "order": ([groups * n // spec["run"]], torch.int32)}
    return found | ({"bias": ([rows], None)} if spec["bias"] else {})


def is_packed(spec: Spec) -> bool:
    """Whether a layer's weight is kept otherwise than in a dense one of the same kind."""
    return spec["format"] not in ("dense", CHANNELS)


def full_weight(spec: Spec) -> tuple[str, list[int]]:
    """The first tensor of a layer as its model makes it, dense and with all channels, and its shape in files."""
    if spec["format"] == CHANNELS:
        return next(iter(full_tensors(spec).items()))
    if "kernel" in spec:
        rows, cols = spec["full_shape"]
        return "weight", [rows, cols // math.prod(spec["kernel"]), *spec["kernel"]]
    return "weight", spec["full_shape"][::-1] if spec["conv1d"] else spec["full_shape"]


def activations_of(layers: dict[str, Spec]) -> dict[str, str]:
    """Layers that apply what follows them, by name."""
    return {name: spec["activation"] for name, spec in layers.items() if "activation" in spec}


class PackedTensors(nn.Module):
    """A packed layer as a file holds it, for a loader that fills parameters by name; `layer` makes the layer of it."""

    def __init__(self, spec: Spec, like: Any) -> None:
        """In the place of `like`, as its model makes it."""
        super().__init__()
        self.spec, self.geometry, dtype = spec, geometry_of(like) if "kernel" in spec else None, like.weight.dtype
        self.out_features, self.in_features = spec["shape"]  # which a model's own initialization may ask for
        for name, (shape, own) in tensors_of(spec).items():
            tensor = torch.empty(shape, dtype=own or dtype, device="meta")
            if own is None:
                self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
            else:
                self.register_buffer(name, tensor)

    @property
    def weight(self) -> Tensor:
        """What a model's own initialization may write to, as if it were there."""
        return torch.empty(self.spec["shape"], dtype=torch.float32, device="meta")

    def layer(self) -> nn.Module:
        """The layer, checked; RuntimeError if the tensors do not make one."""
        first: Any = next(iter(self.parameters()))
        layer = empty_packed(self.spec, first.device, first.dtype, self.geometry)
        layer.load_state_dict(self.state_dict())
        layer.training = self.training
        return layer


def empty_packed(spec: Spec, device: torch.device, dtype: torch.dtype, geometry: Geometry | None) -> nn.Module:
    """A packed layer of a spec, of weight zero, for a state_dict to be loaded; a convolution moves by `geometry`."""
    rows, cols = spec["shape"]
    sizes = cols, rows, spec["bias"], device, dtype
    layer: Any
    if spec["format"] == "2:4":
        layer = (Conv24 if geometry else Linear24)(*sizes)
    else:
        layer = (ConvBlocks if geometry else LinearBlocks)(*sizes, block=tuple(spec["block"]), run=spec["run"])
    if geometry:
        layer.moving(geometry, spec["channels_last"])
    layer.is_conv1d, layer.full_shape = spec.get("conv1d", False), tuple(spec["full_shape"])
    layer.parts = tuple(spec.get("parts", (1, 1)))
    return layer


def shrunken(layer: Any, spec: Spec) -> nn.Module:
    """A layer of the sizes of a spec that is not packed, on the meta device, like the layer that the model makes."""
    if spec["format"] == CHANNELS:
        return with_channels(layer, spec, torch.device("meta"))
    rows, cols = spec["shape"]
    dtype = layer.weight.dtype
    if is_hf_conv1d(layer):
        layer.weight = nn.Parameter(torch.empty(cols, rows, dtype=dtype, device="meta"))
        layer.bias = nn.Parameter(torch.empty(rows, dtype=dtype, device="meta"))
        layer.nx, layer.nf = cols, rows
    else:
        layer = nn.Linear(cols, rows, spec["bias"], "meta", dtype)
    layer.full_shape, layer.parts = tuple(spec["full_shape"]), tuple(spec.get("parts", (1, 1)))
    return layer
