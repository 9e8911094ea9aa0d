"""Compress a pruned model: channels removed, and each layer in the one format that suits it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trisparse.prune.channels.find_chains import find_chains
from trisparse.prune.channels.obstacles import check_numbers, obstacle
from trisparse.prune.channels.same_outputs import check_example, own_example
from trisparse.prune.channels.shrinking import restored
from trisparse.prune.costs.fold_activations import unfold_activations
from trisparse.prune.deploy.choose_format import Chooser
from trisparse.prune.deploy.compact import compact_found
from trisparse.prune.deploy.compaction_report import NEEDED
from trisparse.prune.deploy.compression_report import CompressionReport
from trisparse.prune.deploy.conv_inputs import inputs_on
from trisparse.prune.deploy.formats import unpack_layer
from trisparse.prune.deploy.layer_spec import check_config, note_in_config
from trisparse.prune.deploy.packed_outputs import fold_if_equal, keep_if_equal, outputs_before
from trisparse.prune.deploy.saved_names import naming_obstacles, that_can_be_saved, transformers_models
from trisparse.prune.errors import PruningError
from trisparse.prune.layers.modules import is_packable, replace_module, unwrap
from trisparse.prune.layers.weights import named_weights
from trisparse.sparse_ops import Linear24, LinearBlocks

PACKED = (Linear24, LinearBlocks)


@torch.inference_mode(False)  # in which new tensors could not take part in training any more
@torch.no_grad()
def compress(
    model: nn.Module, prefer: str = "speed", tokens: Sequence[int] = (1, 4096), *, measure: bool = True,
    remove_channels: bool = True, example: Mapping[str, Any] | tuple | None = None, cache: Path | None = None,
) -> tuple[nn.Module, CompressionReport]:  # fmt: skip
    """Keep every linear layer and convolution in one format, by the pattern of its zeros; in place, for inference.

    First channels and heads that are zero are removed, as by `compact`, but from a model of transformers none that its
    checkpoints could not hold: those of convolutions. Then each layer stays dense or becomes packed 2:4, column vectors
    or blocks; its dense weight is let go of. Outputs on the example are compared after either; where packing changes
    them, all layers are unpacked again and the report says so. With `prefer="speed"` a packed layer then applies the
    ReLU or GELU that alone reads its outputs, where that is a module beside it: the layer gives what that gave.

    Args:
        model: pruned, not packed yet; shared weights, layers with hooks or weights that are computed, subclasses, and
            all that is no linear layer and no convolution without groups stay as they are.
        prefer: `speed` keeps a packed format only if it is 3 % faster than dense over `tokens` and for none of them
            below 0.97 times as fast; `memory` keeps the smallest format, and the report says what that costs. Of
            formats with rows grouped anew, which only packing can size, those are tried that come near.
        tokens: numbers of tokens in a batch that matter; for a convolution that no example reaches, of positions in its
            output.
        measure: time dense and packed on the model's device; otherwise a format has to promise a gain of 1.15 by a
            static model of a GPU or a CPU, which knows no convolutions. Times are remembered for this device and these
            versions.
        remove_channels: call `compact`; where that changes outputs, or its example can't be run, all channels stay and
            the report says so.
        example: inputs that `compact` finds readers by, and that outputs are compared on, keywords or positions;
            transformers models of text and of pictures have their own.
        cache: folder of the times; `$TRISPARSE_CACHE` or `~/.cache/trisparse` unless given.

    Returns:
        The model, and what became of each layer.

    Raises:
        PruningError: an argument that is not among these, or a model with nothing to pack, packed already, quantized
            by another method, or not in memory; the model is as it was.
    """
    if prefer not in ("speed", "memory"):
        raise PruningError(f"prefer: want 'speed' or 'memory', got {prefer!r}")
    counts = _checked_tokens(tokens)
    if cache is not None and not isinstance(cache, (str, Path)):
        raise PruningError(f"cache: want a folder, got {cache!r:.60}")
    check_example(example)
    bare = unwrap(model)
    before = _checked_layers(bare)
    example = own_example(bare) if example is None else example
    report = CompressionReport(prefer, bytes_before=model_bytes(bare))
    if remove_channels and (found := that_can_be_saved(bare, find_chains(bare, example))).chains:
        try:
            report.channels = compact_found(bare, found, example)
        except PruningError as error:
            report.add_note(f"all channels stay: {error}")
        else:
            for chain in report.channels.chains:
                if chain.reason.startswith(NEEDED):
                    report.add_note(f"channels of {', '.join(chain.producers)}: {chain.reason}")
    shared, unnamed = _shared_weights(bare), naming_obstacles(bare, before)
    chooser = Chooser(prefer, counts, measure, None if cache is None else Path(cache))
    head: Any = getattr(bare, "get_output_embeddings", lambda: None)()
    outputs: list[Tensor] | None = None
    pictures = inputs_on(bare, example) if measure else {}
    for name, layer in list(_packable_layers(bare)):
        why_not = _obstacle(layer, shared) or unnamed.get(name, "")
        row, packed = chooser.choose(name, layer, why_not, pictures.get(name))
        row.bytes_before = before[name]
        report.layers.append(row)
        if packed is not None:
            outputs = outputs_before(bare, example, report) if outputs is None else outputs  # of what is still dense
            replace_module(bare, name, packed)
            row.reason += "; decompress before resize_token_embeddings" if layer is head else ""
    if outputs and keep_if_equal(bare, outputs, example, report) and prefer == "speed":
        fold_if_equal(bare, outputs, example, report)
    report.bytes_after = model_bytes(bare)
    report.add_note(_stored_whole(bare, report.bytes_after))
    note_in_config(bare)
    return model, report


def _stored_whole(model: nn.Module, bytes_of_all: int) -> str:
    """Which weights have zeros and can't be packed, by kind of module; an empty string if none has."""
    others = {id(part.tensor): part for part in named_weights(model) if not is_packable(part.module)}
    counts: Counter[str] = Counter()
    zeros = numbers = nbytes = 0
    for part in others.values():
        missing = 0 if part.tensor is None else part.tensor.numel() - int(part.tensor.count_nonzero())
        if part.tensor is None or missing < 0.01 * part.tensor.numel():  # training leaves single zeros, too
            continue
        counts[type(part.module).__name__] += 1
        zeros, numbers, nbytes = zeros + missing, numbers + part.tensor.numel(), nbytes + part.tensor.nbytes
    if not counts:
        return ""
    kinds = ", ".join(f"{count} of {kind}" for kind, count in counts.most_common())
    shares = f"{zeros / numbers:.0%} of them zero, {nbytes / bytes_of_all:.0%} of all bytes"
    return f"these weights with zeros have no packed format: {kinds} ({shares})"


@torch.inference_mode(False)
@torch.no_grad()
def decompress(model: nn.Module) -> nn.Module:
    """Make every layer dense again, in place, with channels that were removed back as zeros, at the end.

    Outputs stay the same, and what the model saves is again a checkpoint of its class.
    """
    bare = unwrap(model)
    unfold_activations(bare)
    for name, layer in list(bare.named_modules()):
        if isinstance(layer, PACKED) or hasattr(layer, "full_shape"):
            replace_module(bare, name, unpack_layer(layer))
        elif hasattr(layer, "full_channels"):
            replace_module(bare, name, restored(layer))
    note_in_config(bare)
    return model


def model_bytes(model: nn.Module) -> int:
    """Of all parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def _checked_tokens(tokens: Any) -> list[int]:
    is_list = isinstance(tokens, Iterable) and not isinstance(tokens, (str, bytes))
    counts = list(tokens) if is_list else []
    if not counts or any(not isinstance(t, int) or isinstance(t, bool) or t < 1 for t in counts):
        got = repr(counts or tokens)
        raise PruningError(f"tokens: want at least one number of tokens, each 1 or more, got {got:.60}")
    return counts


def _checked_layers(model: nn.Module) -> dict[str, int]:
    """Bytes of every layer's weight; PruningError for a model that can't be compressed."""
    if packed := [name for name, module in model.named_modules() if isinstance(module, PACKED)]:
        raise PruningError(
            f"model: is compressed already ({packed[0] or 'itself'} is packed); call decompress(model), or export the "
            "checkpoint as dense, first"
        )
    check_numbers(model)
    check_config(model)
    found = {name: layer.weight.nbytes for name, layer in _packable_layers(model)}
    if not found:
        raise PruningError("model: has no linear layer, and no convolution without groups")
    if "" in found:
        raise PruningError("model: is a single layer; put it into nn.Sequential")
    return found


def _packable_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if is_packable(module):
            yield name, module


def _shared_weights(model: nn.Module) -> set[int]:
    """Weights that more than one module holds; in a transformers model also those of a module under two names."""
    twice = _weights_held_twice(model.modules())
    for _, part in transformers_models(model):
        twice |= _weights_held_twice(module for _, module in part.named_modules(remove_duplicate=False))
    return twice


def _weights_held_twice(modules: Iterable[nn.Module]) -> set[int]:
    seen: set[int] = set()
    twice: set[int] = set()
    for module in modules:
        for parameter in module.parameters(recurse=False):
            (twice if id(parameter) in seen else seen).add(id(parameter))
    return twice


def _obstacle(layer: Any, shared: set[int]) -> str:
    """Why a layer must stay as it is, or an empty string."""
    return "its weight is shared" if id(layer.weight) in shared else obstacle(layer)
