"""Prune a model at once: one verb, whatever the method."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trisparse.prune.config.config import PruningConfig
from trisparse.prune.config.own_parts import Part
from trisparse.prune.errors import PruningError, nearest
from trisparse.prune.layers.modules import unwrap
from trisparse.prune.one_shot.at_once import config_at_once
from trisparse.prune.one_shot.dsnot import MASKS
from trisparse.prune.one_shot.layer_by_layer import CALIBRATED, MAGNITUDE, Texts, prune_layer_by_layer
from trisparse.prune.one_shot.layer_sparsity import OWL, OWL_LAMBDA, OWL_M, Owl
from trisparse.prune.one_shot.retrain_free import Loss, prune_retrain_free
from trisparse.prune.one_shot.sparsegpt import BLOCK_SIZE, DAMPENING
from trisparse.prune.one_shot.texts import SAMPLES
from trisparse.prune.pruner.pruner import Pruner
from trisparse.prune.pruner.report import SparsityReport

RETRAIN_FREE = "retrain_free"
METHODS = (MAGNITUDE, *CALIBRATED, RETRAIN_FREE)


def prune_once(
    model: nn.Module, method: str = MAGNITUDE, batches: Iterable[Any] | None = None, *,
    pattern: str | Part | None = None, target_sparsity: float | None = None,
    config: PruningConfig | Mapping[str, Any] | str | Path | None = None,
    layer_sparsity: Sequence[float] | Mapping[str, float] | str | None = None,
    owl_m: float = OWL_M, owl_lambda: float = OWL_LAMBDA, dampening: float = DAMPENING, block_size: int = BLOCK_SIZE,
    dsnot_mask: str = MASKS[0], loss: Loss | None = None, calibration: Any = None, tokenizer: Any = None,
    samples: int = SAMPLES, max_length: int | None = None, column: str | None = None,
    device: torch.device | str | None = None, progress: Callable[[str], None] = lambda text: None, **keys: Any,
) -> SparsityReport:  # fmt: skip
    """Prune a model without training, in place.

    `magnitude` zeroes the smallest weights, or units by their mean; it needs no data and takes any pattern and budget,
    and layers compete unless `pruning_scope="local"` says otherwise. `retrain_free` takes whole rows, columns and
    heads, by what masks on them would do to a loss (arXiv 2204.09656). The others prune linear layers, each to the
    target, block by block on calibration data: `wanda` zeroes weights by |W| · ‖X‖ (arXiv 2306.11695); `sparsegpt` also
    changes the weights that stay, so that each layer's outputs change least (arXiv 2301.00774); `dsnot` swaps weights
    of a mask so that the outputs' means change least (arXiv 2310.08915). They see inputs as the blocks already pruned
    give them: the batches go through the whole model once, and for each block through all before it, which for many
    blocks is half as many forwards as there are blocks.

    Args:
        model: any. Of the calibrated methods, blocks are the elements of an `nn.ModuleList`, as transformers' are;
            layers in none come one by one. A classification head stays dense unless `exclude_head=False`.
        method: `magnitude`, `wanda`, `sparsegpt`, `dsnot` or `retrain_free`.
        batches: keywords or positions of the model's forward; some 128 texts of 2048 tokens are usual. Tokens that an
            `attention_mask` hides do not count, but by experts, which see what the router sends; of an encoder-decoder,
            nor do the decoder's at these places, if it has as many. All are held in memory, and so is a CPU copy of the
            pruned weights. Of `retrain_free`, what `loss` takes.
        pattern: `2:4`, `4x1` and the like: what goes together. Calibrated methods take `N:M` and `1x1`.
        target_sparsity: fraction of the weights that goes; N:M says it itself.
        config: in place of pattern, sparsity and other keys, all of them, as `Pruner` takes it. When it says to prune,
            and by which criterion, has no use here, and the report says so.
        layer_sparsity: for 1x1 (`magnitude`: all but N:M), a sparsity for each layer, as a list in the report's order,
            or as a mapping from names or regular expressions, where other layers get `target_sparsity`; or `owl`, which
            lets blocks with more outliers keep more, with `target_sparsity` as the mean (arXiv 2310.05175).
        owl_m: M of OWL: what is above M times the mean is an outlier.
        owl_lambda: λ of OWL: sparsities lie in a range of 2λ.
        dampening: of `sparsegpt`, what is added to the Hessian's diagonal, as a share of its mean.
        block_size: of `sparsegpt`, columns that are chosen from together, for 1x1, and updated together.
        dsnot_mask: what `dsnot` starts from, `wanda` or `magnitude`.
        loss: of `retrain_free`, gets the model and a batch, and gives a number; without it, what the forward gives as
            `loss`.
        calibration: in place of batches, texts, or the name of a file or a data set; see `text_batches`.
        tokenizer: of the texts.
        samples: how many texts.
        max_length: tokens of a text at most; default 2048, or fewer if the model takes no more.
        column: of the texts, where rows have several.
        device: where each block runs and is pruned, while all else stays where it is, such as `cuda` for a model that
            only a CPU's memory holds. A block goes there for each batch that passes it.
        progress: is told which block is at work.
        **keys: others of `PruningConfig`: `op_names`, `excluded_op_names`, `target_bytes` say.

    Returns:
        The report that `Pruner.report` gives.

    Raises:
        PruningError: no pattern or no sparsity, an argument that does not fit, or layers that see no input or such as
            are not finite; the weights are as they were, after any error.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> prune_once(model, pattern="2:4").pruned_layers
        0.5
    """
    unwrap(model)  # what is no model is that first of all
    if method not in METHODS:
        raise PruningError(f"method: {method!r} is not one of {', '.join(METHODS)}{nearest(str(method), METHODS)}")
    by_owl = isinstance(layer_sparsity, str) and layer_sparsity == OWL
    looks = method in CALIBRATED or by_owl
    texts: dict[str, Any] = {"tokenizer": tokenizer, "max_length": max_length, "column": column}
    data = "a method that looks at data"
    for name, is_given, has_effect, with_what in (
        ("loss", loss is not None, method == RETRAIN_FREE, f"method {RETRAIN_FREE!r}"),
        *((name, value is not None, calibration is not None, "calibration") for name, value in texts.items()),
        ("samples", samples != SAMPLES, calibration is not None, "calibration"),
        ("dampening", dampening != DAMPENING, method == "sparsegpt", "method 'sparsegpt'"),
        ("block_size", block_size != BLOCK_SIZE, method == "sparsegpt", "method 'sparsegpt'"),
        ("dsnot_mask", dsnot_mask != MASKS[0], method == "dsnot", "method 'dsnot'"),
        ("owl_m", owl_m != OWL_M, by_owl, f"layer_sparsity {OWL!r}"),
        ("owl_lambda", owl_lambda != OWL_LAMBDA, by_owl, f"layer_sparsity {OWL!r}"),
        ("batches", batches is not None, looks or method == RETRAIN_FREE, data),
        ("calibration", calibration is not None, looks, data),
        ("device", device is not None, looks, data),
        ("calibration", calibration is not None, batches is None, "batches left out"),
        ("layer_sparsity", layer_sparsity is not None, method != RETRAIN_FREE, "a method that goes layer by layer"),
    ):
        if is_given and not has_effect:
            raise PruningError(f"{name}: has no effect without {with_what}; leave it out")
    if isinstance(layer_sparsity, (list, tuple)) and target_sparsity is not None:
        raise PruningError("target_sparsity: layer_sparsity has a value for every layer; leave it out")
    given = {"pattern": pattern, "target_sparsity": target_sparsity}
    keys |= {key: value for key, value in given.items() if value is not None}
    if "pruning_scope" in keys and (method in CALIBRATED or layer_sparsity is not None):
        raise PruningError("pruning_scope: says which layers compete, and each has its own target here; leave it out")
    has_target = config is not None or target_sparsity is not None
    found, notes = config_at_once(config, keys, layer_sparsity is not None and not by_owl)
    if method == RETRAIN_FREE:
        report = prune_retrain_free(model, batches, loss, found)
    elif method == MAGNITUDE and layer_sparsity is None:
        pruner = Pruner(model, found)
        pruner.start()
        report = pruner.report()
    else:
        options: dict[str, Any] = {}
        if method == "sparsegpt":
            options = {"dampening": dampening, "block_size": block_size}
        elif method == "dsnot":
            options = {"mask": dsnot_mask}
        owl = Owl(owl_m, owl_lambda) if by_owl else None
        source = batches if calibration is None else Texts(calibration, tokenizer, samples, max_length, column)
        report = prune_layer_by_layer(
            model, method, options, found, layer_sparsity, has_target, owl, source, device, progress
        )
    return dataclasses.replace(report, notes=(*notes, *report.notes))
