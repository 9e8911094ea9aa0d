"""Prune a large model at once, by what a calibration set shows."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from trisparse.prune.config.config import PruningConfig
from trisparse.prune.config.group import GroupConfig
from trisparse.prune.errors import PruningError
from trisparse.prune.one_shot.calibrate import Block, calibrate
from trisparse.prune.one_shot.dsnot import MASKS, DSnoT
from trisparse.prune.one_shot.layer_sparsity import OWL, OWL_LAMBDA, OWL_M, Owl, given_sparsities
from trisparse.prune.one_shot.magnitude import prune_by_magnitude
from trisparse.prune.one_shot.method import Method
from trisparse.prune.one_shot.sparsegpt import BLOCK_SIZE, DAMPENING, SparseGPT
from trisparse.prune.one_shot.texts import SAMPLES, text_batches
from trisparse.prune.one_shot.wanda import Wanda
from trisparse.prune.pruner.layers import exact
from trisparse.prune.pruner.left_out import is_named, listed, notes_of
from trisparse.prune.pruner.once import SCHEDULE, prune_once
from trisparse.prune.pruner.pruner import Pruner
from trisparse.prune.pruner.report import SparsityReport
from trisparse.prune.pruner.weights import named_weights

MAGNITUDE = "magnitude"
METHODS: dict[str, Callable[..., Method] | None] = {
    "wanda": Wanda, "sparsegpt": SparseGPT, "dsnot": DSnoT, MAGNITUDE: None,
}  # fmt: skip


@torch.no_grad()
def prune_one_shot(
    model: nn.Module, batches: Iterable[Any] | None = None, method: str = "wanda", *,
    layer_sparsity: Sequence[float] | Mapping[str, float] | str | None = None,
    owl_m: float = OWL_M, owl_lambda: float = OWL_LAMBDA, dampening: float = DAMPENING, block_size: int = BLOCK_SIZE,
    dsnot_mask: str = MASKS[0], calibration: Any = None, tokenizer: Any = None, samples: int = SAMPLES,
    max_length: int | None = None, column: str | None = None, device: torch.device | str | None = None,
    progress: Callable[[str], None] = lambda text: None, **keys: Any,
) -> SparsityReport:  # fmt: skip
    """Prune a model's linear layers without training, in place, block by block on calibration data.

    `wanda` zeroes weights by |W| · ‖X‖ (arXiv 2306.11695); `sparsegpt` also changes the weights that stay, so that
    each layer's outputs change least (arXiv 2301.00774); `dsnot` swaps weights of a mask so that the outputs' means
    change least (arXiv 2310.08915). All see inputs as the blocks already pruned give them: the batches go through the
    whole model once, and for each block through all before it, which for many blocks is half as many forwards as there
    are blocks. `magnitude` needs no data, takes any pattern, and is `prune_once` with `pruning_scope="local"`.

    Args:
        model: its blocks are the elements of an `nn.ModuleList`, as transformers' are; layers in none come one by one.
        batches: keywords or positions of the model's forward; some 128 texts of 2048 tokens are usual. Tokens that an
            `attention_mask` hides do not count, but by experts, which see what the router sends; of an encoder-decoder,
            nor do the decoder's at these places, if it has as many. All are held in memory, and so is a CPU copy of the
            pruned weights.
        method: `wanda`, `sparsegpt`, `dsnot` or `magnitude`.
        layer_sparsity: for 1x1 (`magnitude`: all but N:M), a sparsity for each layer, as a list in the report's order,
            or as a mapping from names or regular expressions, where other layers get `target_sparsity`; or `owl`, which
            lets blocks with more outliers keep more, with `target_sparsity` as the mean (arXiv 2310.05175).
        owl_m: M of OWL: what is above M times the mean is an outlier.
        owl_lambda: λ of OWL: sparsities lie in a range of 2λ.
        dampening: of `sparsegpt`, what is added to the Hessian's diagonal, as a share of its mean.
        block_size: of `sparsegpt`, columns that are chosen from together, for 1x1, and updated together.
        dsnot_mask: what `dsnot` starts from, `wanda` or `magnitude`.
        calibration: in place of batches, texts, or the name of a file or a data set; see `text_batches`.
        tokenizer: of the texts.
        samples: how many texts.
        max_length: tokens of a text at most; default 2048, or fewer if the model takes no more.
        column: of the texts, where rows have several.
        device: where each block runs and is pruned, while all else stays where it is, such as `cuda` for a model that
            only a CPU's memory holds. A block goes there for each batch that passes it.
        progress: is told which block is at work.
        **keys: those of `PruningConfig`: a `pattern`, `N:M` or `1x1`, `target_sparsity` for 1x1, `excluded_op_names`.

    Returns:
        The report that `Pruner.report` gives.

    Raises:
        PruningError: an argument that does not fit, or layers that see no input or such as are not finite; the weights
            are as they were, after any error.
    """
    if method not in METHODS:
        *most, last = METHODS
        raise PruningError(f"method: want {', '.join(most)} or {last}, got {method!r}")
    by_owl = isinstance(layer_sparsity, str) and layer_sparsity == OWL
    needs_data = method != MAGNITUDE or by_owl
    texts = {"tokenizer": tokenizer, "max_length": max_length, "column": column}
    for name, is_given, has_effect, with_what in (
        *((name, value is not None, calibration is not None, "calibration") for name, value in texts.items()),
        ("samples", samples != SAMPLES, calibration is not None, "calibration"),
        ("dampening", dampening != DAMPENING, method == "sparsegpt", "method 'sparsegpt'"),
        ("block_size", block_size != BLOCK_SIZE, method == "sparsegpt", "method 'sparsegpt'"),
        ("dsnot_mask", dsnot_mask != MASKS[0], method == "dsnot", "method 'dsnot'"),
        ("owl_m", owl_m != OWL_M, by_owl, f"layer_sparsity {OWL!r}"),
        ("owl_lambda", owl_lambda != OWL_LAMBDA, by_owl, f"layer_sparsity {OWL!r}"),
        ("batches", batches is not None, needs_data, "a method that looks at data"),
        ("calibration", calibration is not None, needs_data, "a method that looks at data"),
        ("device", device is not None, needs_data, "a method that looks at data"),
        ("calibration", calibration is not None, batches is None, "batches left out"),
    ):
        if is_given and not has_effect:
            raise PruningError(f"{name}: has no effect without {with_what}; leave it out")
    config = _config(method, needs_data, keys)
    (group,) = config.groups
    if layer_sparsity is None and not needs_data:
        return prune_once(model, pruning_scope="local", **keys)
    if layer_sparsity is not None and group.pattern.is_nm:
        raise PruningError(f"layer_sparsity: {group.pattern} says how much of each layer goes; leave it out")
    if isinstance(layer_sparsity, (list, tuple)) and keys.get("target_sparsity") is not None:
        raise PruningError("target_sparsity: layer_sparsity has a value for every layer; leave it out")
    owl = Owl(owl_m, owl_lambda) if by_owl else None
    options: dict[str, Any] = {}
    if method == "sparsegpt":
        options = {"dampening": dampening, "block_size": block_size}
    elif method == "dsnot":
        options = {"mask": dsnot_mask}
    sparsities: dict[str, float] = {}
    make = METHODS[method]
    chosen = make(group.pattern, sparsities, **options) if make is not None else None
    hidden = _hidden(model, group) if needs_data else []
    layers = Pruner(model, config.excluding(*map(exact, hidden))).layers
    if owl is None:
        sparsities.update(given_sparsities(layer_sparsity, layers, group))
    notes = notes_of((name, "multiplies where calibration can't look, inside a recurrent layer") for name in hidden)
    if needs_data:
        if calibration is not None:
            batches, note = text_batches(model, calibration, tokenizer, samples, max_length, column)
            notes.append(note)
        elif batches is None:
            raise PruningError(
                "batches: want a list or a loader of batches, got one NoneType; or give calibration and a tokenizer"
            )

        def begin(blocks: list[Block]) -> None:
            if owl is not None:
                sparsities.update(owl.sparsities(blocks, group))

        look = owl.look if owl is not None else None
        unreached = calibrate(model, layers, batches, chosen, progress, look, begin, device)
        if unreached:
            experts = listed([layer.name for layer in unreached])
            notes.append(
                f"pruned by size alone, since no token of the batches came to them: {experts}; give more batches"
            )
            warnings.warn(notes[-1], stacklevel=2)
    if chosen is None:
        report = prune_by_magnitude(model, layers, sparsities, keys)
    else:
        report = _report(model, [exact(layer.name) for layer in layers], keys)
    return dataclasses.replace(report, notes=(*notes, *report.notes))


def _config(method: str, needs_data: bool, keys: dict[str, Any]) -> PruningConfig:
    """One group; PruningError for keys that one-shot pruning has no use for. Sets the types that can be calibrated."""
    refused = {*SCHEDULE, "pruning_configs", "pruning_scope", "lock_init_sparsity"} & keys.keys()
    if refused:
        raise PruningError(f"{min(refused)}: prune_one_shot prunes once, each layer alike; leave it out")
    if needs_data and keys.setdefault("pruning_op_types", ["Linear"]) != ["Linear"]:
        raise PruningError(f"pruning_op_types: want ['Linear'] for {method}, got {keys['pruning_op_types']!r}")
    config = PruningConfig(pruning_type="magnitude", start_step=0, end_step=0, **keys)
    (group,) = config.groups
    pattern = group.pattern
    if method != MAGNITUDE and not pattern.is_nm and (pattern.n, pattern.m) != (1, 1):
        raise PruningError(f"pattern: want N:M or 1x1 for {method}, got {keys.get('pattern')!r}")
    if group.target_sparsity is None:
        raise PruningError(f"{group.goal}: is for prune_once and Pruner, in which layers compete; want target_sparsity")
    if pattern.is_nm and group.target_sparsity != 1 - pattern.n / pattern.m:
        raise PruningError(f"target_sparsity: want {1 - pattern.n / pattern.m} for {keys['pattern']}, or leave it out")
    return config


def _hidden(model: nn.Module, group: GroupConfig) -> list[str]:
    """Weights of recurrent layers, which nobody named."""
    found = [weight.name for weight in named_weights(model) if isinstance(weight.module, (nn.RNNBase, nn.RNNCellBase))]
    return [name for name in found if not is_named(group, name)]


def _report(model: nn.Module, names: list[str], keys: Mapping[str, Any]) -> SparsityReport:
    locked = PruningConfig(
        pruning_type="pattern_lock", pattern=keys["pattern"], op_names=names,
        pruning_op_types=keys["pruning_op_types"], exclude_head=False,
    )  # fmt: skip
    done = Pruner(model, locked)
    done.start()
    return done.report()
