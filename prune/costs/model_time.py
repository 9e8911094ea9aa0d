"""How long a model's forward takes, and how many rows each of its layers multiplies in it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trisparse.prune.config.budget import Budget
from trisparse.prune.costs.layer_cost import matrix_of
from trisparse.prune.errors import PruningError, one_line
from trisparse.prune.evaluating import evaluating
from trisparse.prune.layers.layer import Layer

_LENGTH = 128  # tokens of a text, if there are more
_ROUNDS, _SECONDS = 9, 4.0  # of runs of the model


def examples_of(model: nn.Module, budget: Budget, example: Any) -> list[Mapping[str, Any]]:
    """Keywords of the forwards that count: what is given, or texts of as many tokens as the budget says.

    Raises:
        PruningError: something else is given, or a model that is no language model wants something.
    """
    if example is not None:
        if not isinstance(example, Mapping):
            raise PruningError(f"example: want the keywords of a forward, got {type(example).__name__}")
        return [example]
    if not isinstance(getattr(getattr(model, "config", None), "vocab_size", None), int):
        raise PruningError(
            "target_speedup: there are no inputs to time this model with; give the Pruner example={...}, the keywords "
            "of a forward"
        )
    return list(text_examples(model, budget.tokens).values())


def text_examples(model: Any, tokens: Sequence[int]) -> dict[int, Mapping[str, Any]]:
    """Number of tokens -> keywords of a language model's forward, exactly so many of them in texts of one length."""
    config, device = model.config, next(model.parameters()).device
    longest = min(_LENGTH, getattr(config, "max_position_embeddings", None) or _LENGTH)
    found: dict[int, Mapping[str, Any]] = {}
    for count in tokens:
        length = next(n for n in range(min(longest, count), 0, -1) if count % n == 0)
        generator = torch.Generator().manual_seed(count)
        ids = torch.randint(config.vocab_size, (count // length, length), generator=generator, device="cpu")
        found[count] = {"input_ids": ids.to(device)}
    return found


@torch.no_grad()
def tokens_of(model: nn.Module, layers: Mapping[str, tuple[Layer, int]], example: Mapping[str, Any]) -> dict[str, int]:
    """Rows that each layer multiplies in one forward."""
    found: dict[str, int] = {}
    handles = []
    for name, (layer, _) in layers.items():

        def count(
            module: Any, args: tuple[Tensor, ...], output: Tensor, name: str = name, layer: Layer = layer
        ) -> None:
            found[name] = found.get(name, 0) + output.numel() // matrix_of(layer)[0]

        handles.append(layer.module.register_forward_hook(count))
    try:
        with evaluating(model):
            model(**example)
    except Exception as error:
        raise PruningError(f"example: the model does not run on it: {one_line(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.no_grad()
def model_ms(model: nn.Module, example: Mapping[str, Any]) -> float:
    """Median of one forward."""
    device = next(model.parameters()).device
    times: list[float] = []
    with evaluating(model):
        until = time.perf_counter() + _SECONDS
        while len(times) < 4 or (len(times) < _ROUNDS and time.perf_counter() < until):
            begin = time.perf_counter()
            model(**example)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times[1:])
