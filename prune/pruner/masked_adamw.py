"""AdamW that scores and masks in the pass that steps the weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from trisparse.prune.errors import PruningError
from trisparse.prune.layers.layer import Layer
from trisparse.prune.pruner.group import PrunedGroup
from trisparse.sparse_ops.choosing.masked_adamw import DTYPES, adamw_rates

_REFUSED = ("amsgrad", "maximize", "capturable", "differentiable", "fused")


class MaskedAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` for a Pruner: `pruner.attach(optimizer)`, and pruned weights are scored, stepped and
    masked in one pass over memory, by one launch on a GPU. All other parameters, and all before `attach`, are
    stepped by torch's own AdamW. The state is that of `torch.optim.AdamW`, and either can load the other's.

    Args:
        params: as `torch.optim.AdamW`.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled, times lr.
        options: further options of `torch.optim.AdamW`, also in parameter groups; amsgrad, maximize, capturable,
            differentiable and fused are refused.

    Raises:
        PruningError: an option that has no fused step.

    Example:
        >>> from trisparse import MaskedAdamW, Pruner, PruningConfig
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = MaskedAdamW(model.parameters(), lr=0.1)
        >>> pruner = Pruner(model, PruningConfig(target_sparsity=0.5, start_step=1, end_step=2))
        >>> with pruner.attach(optimizer):
        ...     for _ in range(2):
        ...         model(torch.randn(4, 8)).square().sum().backward()
        ...         optimizer.step()
        >>> int((model[0].weight == 0).sum())
        32
    """

    groups: Sequence[PrunedGroup] = ()  # of the Pruner that it serves
    _counted: Mapping[
        int, tuple[Tensor, list[Tensor]]
    ] = {}  # number of a parameter group -> counts of steps, and parts

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        **options: Any,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **options)
        for group in self.param_groups:
            if wrong := [name for name in _REFUSED if group.get(name)]:
                raise PruningError(f"{wrong[0]}: MaskedAdamW has no step with {wrong[0]}; use torch.optim.AdamW")

    def serve(self, groups: Sequence[PrunedGroup]) -> None:
        """Score and mask these groups of a Pruner from now on, or none; `Pruner.attach` calls it.

        Raises:
            PruningError: it serves another, or a weight is of a dtype that the pass does not compute in.
        """
        if groups and self.groups:
            raise PruningError("attach: MaskedAdamW serves a Pruner already; prune all groups by one config")
        layers = _layers(groups)
        parts = Counter(id(layer.weight) for layer in layers)
        for layer in layers:
            if layer.rows.group is not None:
                raise PruningError(
                    f"attach: {layer.name} is sharded, which MaskedAdamW cannot step; use torch.optim.AdamW"
                )
            if layer.weight.dtype not in DTYPES:
                raise PruningError(
                    f"attach: {layer.name} is {layer.weight.dtype}, and MaskedAdamW computes in float32; "
                    "use torch.optim.AdamW"
                )
        for layer in layers:
            if layer.part is not None and parts[id(layer.weight)] < len(layer.weight):
                raise PruningError(
                    f"attach: {layer.name} is pruned and other parts of its parameter are not, and MaskedAdamW steps "
                    "whole parameters; prune them all, or use torch.optim.AdamW"
                )
        for group in groups or self.groups:
            group.is_stepped_here = bool(groups)
        self.groups = groups

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if any(p.grad is not None and p.grad.is_sparse for group in self.param_groups for p in group["params"]):
            raise PruningError(
                "step: MaskedAdamW has no step for sparse gradients; give them to torch.optim.SparseAdam"
            )
        pruned = {id(layer.weight) for layer in _layers(self.groups)}
        rates: dict[int, list[float]] = {}
        for number, group in enumerate(self.param_groups):
            found = [p for p in group["params"] if p.grad is not None]
            self._step_rest(group, [p for p in found if id(p) not in pruned])
            mine = [p for p in found if id(p) in pruned]
            rows: dict[int, list[float]] = {}  # most often all have made as many steps
            for p, count in zip(mine, self._advance(number, mine), strict=True):
                if count not in rows:
                    lr = float(group["lr"])
                    rows[count] = adamw_rates(lr, group["betas"], group["eps"], group["weight_decay"], count)
                rates[id(p)] = rows[count]
        for pruned_group in self.groups:
            pruned_group.step_adamw(rates, self.state)
        return loss

    def _advance(self, number: int, params: Sequence[Tensor]) -> list[int]:
        """Count a step of each of these parameters of a group; returns how many they have made.

        Their counts are made parts of one tensor: to add to each by itself takes as long as the rest of the step.
        """
        steps = [self._state_of(p)["step"] for p in params]
        together, parts = self._counted.get(number, (None, []))
        if together is None or len(parts) != len(steps) or any(a is not b for a, b in zip(parts, steps, strict=True)):
            together = torch.tensor([float(step) for step in steps], dtype=torch.float32, device="cpu")
            parts = [together[i] for i in range(len(steps))]
            for p, part in zip(params, parts, strict=True):
                self.state[p]["step"] = part
            self._counted = {**self._counted, number: (together, parts)}
        together += 1
        return [int(count) for count in together.tolist()]

    def _state_of(self, p: Tensor) -> dict[str, Tensor]:
        state = self.state[p]
        if not state:
            state["step"] = torch.tensor(0.0, dtype=torch.float32, device="cpu")
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        if not state["step"].is_cpu:  # as a fused AdamW, whose state was loaded, has it
            state["step"] = state["step"].cpu()
        return state

    def _step_rest(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """As torch's own AdamW, in one pass where torch has one."""
        beta1, beta2 = group["betas"]
        ways: dict[bool | None, list[tuple[Tensor, dict[str, Tensor]]]] = {True: [], None: []}  # None: torch chooses
        for p in params:
            state = self._state_of(p)
            ways[True if group["foreach"] is None and _has_fused_step(p, state) else None].append((p, state))
        for is_fused, some in ways.items():
            adamw(
                [p for p, _ in some],
                [p.grad for p, _ in some if p.grad is not None],
                [state["exp_avg"] for _, state in some],
                [state["exp_avg_sq"] for _, state in some],
                [],
                [state["step"] for _, state in some],
                foreach=group["foreach"],
                fused=is_fused,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )


def _has_fused_step(p: Tensor, state: dict[str, Tensor]) -> bool:
    """Whether torch steps it in one pass; on a CPU it does not choose that by itself, and makes a dozen passes.

    The one pass goes over memory, so that weight, gradient and moments have to lie alike.
    """
    if type(p) not in (Tensor, nn.Parameter) or not p.is_cpu or not p.is_floating_point():
        return False
    parts = [t for t in (p, p.grad, state["exp_avg"], state["exp_avg_sq"]) if t is not None]
    return all(part.layout is torch.strided and part.is_contiguous() for part in parts)


def _layers(groups: Sequence[PrunedGroup]) -> list[Layer]:
    return [layer for group in groups for layer in group.layers]
