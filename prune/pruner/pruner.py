"""The Pruner: watches gradients, counts optimizer steps, and prunes when the schedule says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trisparse.prune.choosing.lasso import checked_rate
from trisparse.prune.config.config import PruningConfig
from trisparse.prune.costs.cost_table import CostTable
from trisparse.prune.errors import PruningError
from trisparse.prune.layers.find_layers import find_layers
from trisparse.prune.layers.layer import Layer
from trisparse.prune.layers.model_copy import mask_copy
from trisparse.prune.layers.shards import Exchange, data_parallel_group, reshard
from trisparse.prune.pruner.attach import Attachment
from trisparse.prune.pruner.budget import shared_budgets
from trisparse.prune.pruner.group import PrunedGroup
from trisparse.prune.pruner.group_state import group_state, load_group_state
from trisparse.prune.pruner.held_weights import check_modules, check_weights, was_moved
from trisparse.prune.pruner.layer_masks import layer_masks, pruned_weights
from trisparse.prune.pruner.mask_hash import mask_hash
from trisparse.prune.pruner.pruner_state import VERSION, checked_state, saved_layer
from trisparse.prune.pruner.report import SparsityReport, make_report
from trisparse.prune.pruner.sparse_training import SparseTraining
from trisparse.prune.pruner.standing import standing
from trisparse.prune.pruner.zeros import ZeroWatch, check_zeros


class Pruner:
    """Prune a model while it trains.

    The order of a step is: backward, `observe()`, optimizer step, `step()`. `attach(optimizer)` makes
    both calls through the optimizer's own hooks. Nothing happens in a forward, so evaluation is free of
    side effects. Weights are zeroed in place; their storage never moves.

    Args:
        model: on its device and prepared; wrappers of `torch.compile` and data parallelism are looked through, weights
            that `fully_shard` has spread over processes are pruned where they are.
        config: what to prune, how far and when: a `PruningConfig`, its keys in a dict, or a file or recipe of them.
        replicas: the `torch.distributed` group of processes that hold copies of the model, whose masks are compared
            after every event. Found without it under DistributedDataParallel and `fully_shard`.
        sparse_training: `auto` lets linear layers multiply with what the masks keep alone, forward and backward, while
            the Pruner is attached, where that is faster on this CPU by measurement; `on` wherever there is a way, `off`
            nowhere. Masks are the same and weights are but for rounding; the gradient of what is pruned is zero.
        example: keywords of a forward, to time the model with under `target_speedup`; language models have their own,
            of as many `tokens` as the config says.
        measure: whether layers may be timed under `target_speedup`; else a static model says what they cost.

    Raises:
        PruningError: what the config asks for does not fit the model.

    Attributes:
        step_count: optimizer steps so far.
        groups: the state of each group of the config.
        budgets: what groups share that are told how fast, how large or how much work the model is to be.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> config = PruningConfig(pattern="4x1", target_sparsity=0.5, start_step=1, end_step=2)
        >>> pruner = Pruner(model, config)
        >>> with pruner.attach(optimizer):
        ...     for _ in range(2):
        ...         model(torch.randn(4, 8)).square().sum().backward()
        ...         optimizer.step()
        >>> int((model[0].weight == 0).sum())
        32
    """

    def __init__(
        self, model: nn.Module, config: PruningConfig | Mapping[str, Any] | str | Path, replicas: Any = None,
        sparse_training: str = "auto", example: Mapping[str, Any] | None = None, measure: bool = True,
    ) -> None:  # fmt: skip
        self.model = model
        self.config = config = PruningConfig.of(config)
        for group in config.groups:
            if not group.is_lock:
                _ = group.window  # raises where steps are fractions still
        reshard(model)  # after an evaluation, layers would be found whole
        layers, self._notes = find_layers(model, config.groups)
        self.groups = [PrunedGroup(group, own) for group, own in zip(config.groups, layers, strict=True)]
        found = [layer.rows.replicas for layer in self.layers if layer.rows.replicas is not None]
        self._replicas = Exchange(replicas or data_parallel_group(model) or (found[0] if found else None))
        self.step_count = 0
        self._started = False
        self._observed = False
        self._attached: Attachment | None = None
        self._watch = ZeroWatch(self.groups)
        self._holds = False  # whether the weights have been masked, and should be zero since
        self._sparse = SparseTraining(model, self.groups, sparse_training)
        self.budgets = shared_budgets(model, self.groups, self._replicas.group, example, measure)

    @property
    def layers(self) -> list[Layer]:
        return [layer for group in self.groups for layer in group.layers]

    def __repr__(self) -> str:
        parts = [standing(group, self.step_count - (not self._started)) for group in self.groups]
        by = f", attached to {self._attached.name}" if self._attached else ""
        return f"Pruner(step {self.step_count}{by}; {'; '.join(parts)})"

    def start(self) -> None:
        """Fire the event at step 0, if there is one. Once; `attach` does it for you."""
        if not self._started:
            self._started = True
            self._check_weights()
            self._prune()

    @torch.no_grad()
    def observe(self, *, grad_scale: float = 1.0) -> None:
        """Score this step's gradients. Call it between backward and the optimizer's step.

        Args:
            grad_scale: what a gradient scaler has multiplied the gradients by, 1 if they are unscaled.

        Raises:
            PruningError: called twice without `step()`, before a due `start()`, a weight was replaced, or one that is
                pruned came back.
        """
        if self._observed:
            raise PruningError("observe: called twice without step(); call step() after every optimizer step")
        if not self._started and any(group.sparsity(0) is not None for group in self.groups):
            raise PruningError("observe: an event is due at step 0; call start() before the first forward")
        self._check_weights()
        if self._holds and self._attached:  # by hand, a loop may write to weights before it observes
            self._watch.look(self.step_count, self._stepped_by)
        for group in self.groups:
            group.observe(self.step_count + 1, grad_scale)
        self._observed = True

    @torch.no_grad()
    def step(self, *, lr: float | Callable[[Layer], float] | None = None) -> None:
        """Count one optimizer step, choose new masks when an event is due, and zero what is pruned.

        Args:
            lr: learning rate of the step just made, for `reg_type: group_lasso`; `attach` knows it.

        Raises:
            PruningError: called without `observe()`, no lr for group lasso, or layers without a score.
        """
        if not self._observed:
            raise PruningError("step: called without observe(); call observe() before the optimizer's step")
        self._observed = False
        self._started = True
        self.step_count += 1
        for group in self.groups:
            if group.config.reg_type is not None:
                group.shrink(self.step_count, _lr_of(lr))
        self._prune()

    @torch.no_grad()
    def _prune(self) -> None:
        self._reshard()
        for group in self.groups:
            group.check_scored(self.step_count)
        for budget in self.budgets:
            budget.ask(self.step_count)
        partial = [group for group in self.groups if group.parts is not None]
        for group in self.groups:
            group.fire(self.step_count)
        is_event = any(group.sparsity(self.step_count) is not None for group in self.groups)
        if is_event:
            self._check_replicas()
        self._write_masks()
        if is_event or self._sparse.is_due or any(group.parts is None for group in partial):
            self._sparse.update(self.step_count)

    def _write_masks(self) -> None:
        for group in self.groups:
            group.write_masks(self.step_count)
        torch.clear_autocast_cache()  # inside an autocast the next forward would go on with copies of what was there
        self._holds = True

    @torch.no_grad()
    def apply_masks(self, model: nn.Module | None = None) -> None:
        """Zero what the masks prune, after something wrote to the weights, or in a copy of the model.

        Averages of weights (EMA, SWA) remember what was pruned long after: call this before one is evaluated or saved.

        Args:
            model: with layers of the same names and shapes, on any device, such as a deep copy or
                `torch.optim.swa_utils.AveragedModel`; None for the Pruner's own, after an average was put into it.

        Raises:
            PruningError: a layer is missing there, or has another shape.
        """
        if model is None:
            self._check_weights()
            self._write_masks()
        else:
            mask_copy(model, self.masks())

    def check_zeros(self) -> None:
        """Read all pruned weights; `state_dict` and `report` do. All processes make this call where they are sharded.

        Raises:
            PruningError: one is not zero where its mask prunes.
        """
        self._check_weights()
        check_modules(self.model, self.layers)
        check_zeros(self.groups, self.step_count, self._stepped_by)
        self._watch.check(self._stepped_by)

    @property
    def _stepped_by(self) -> str | None:
        return self._attached.name if self._attached else None

    def _check_replicas(self) -> None:
        if self._replicas.group is not None and not self._replicas.agree(self.mask_hash()):
            raise PruningError(
                f"masks: the processes chose different ones at step {self.step_count}; each must have the same weights "
                "and the same reduced gradients: prepare the model before the Pruner, and step all processes alike"
            )

    def mask_hash(self) -> int:
        """A number of 63 bits that is the same for the same masks, on one process or spread over many."""
        return mask_hash(self.groups, self.step_count)

    def _reshard(self) -> None:
        if any(group.weights.is_sharded for group in self.groups):
            reshard(self.model)

    def _check_weights(self) -> None:
        self._reshard()
        check_weights(self.groups)

    def attach(self, optimizer: Any) -> Attachment:
        """Call `observe` and `step` from the optimizer's own hooks, from now on.

        Args:
            optimizer: a `torch.optim.Optimizer`, or a wrapper that has it as `.optimizer`, `.base_optimizer` or
                `.base`. Copies of the weights in the states of all of these, which they write back, are masked too.

        Returns:
            A context manager that detaches on leaving, and warns where events are still to come; it also has
            `.detach()`, which does not.

        Raises:
            PruningError: an optimizer without step hooks, without one of the pruned weights, or without a learning rate
                that group lasso needs, or a second attach.
        """
        if self._attached is not None:
            raise PruningError("attach: this Pruner is attached already; call detach() on what attach returned")
        self._attached = Attachment(
            optimizer, self.groups, self.observe, self.step, self._broke_off, self._detached, self._unfinished
        )
        self.start()
        self._sparse.enter(self.step_count)
        return self._attached

    def _detached(self, attachment: Attachment) -> None:
        if self._attached is attachment:  # a second detach() may come when another has taken its place
            self._attached = None
            self._sparse.leave()
            self._broke_off()

    def _broke_off(self) -> None:
        """Forget a step that ended between the hooks; it may have written to weights that are pruned."""
        self._observed = self._holds = False

    def _unfinished(self) -> str:
        if not self.masks_are_final:
            return f"attach: the with block was left before the last event: {self!r}"
        if was_moved(self.groups):
            return ""
        try:
            self.check_zeros()
        except PruningError as error:
            return f"attach: the with block was left with weights that are not pruned: {error}"
        return ""

    def __getstate__(self) -> dict[str, Any]:
        """A copy is attached to nothing."""
        return {**vars(self), "_attached": None, "_observed": False, "_holds": False}

    def masks(self) -> dict[str, Tensor]:
        """Name in the bare model -> bool tensor of the weight's shape, True = kept; a DTensor if the weight is one."""
        self._check_weights()
        return layer_masks(self.groups, self.step_count)

    @property
    def sparse_layers(self) -> list[str]:
        """Names of the layers that multiply only with what the masks keep, while the Pruner is attached."""
        return self._sparse.sparse

    @property
    def masks_are_final(self) -> bool:
        """Whether the last event of every group is past."""
        return all(group.masks_are_final(self.step_count) for group in self.groups)

    def sparsity(self) -> float:
        """Fraction of the groups' weights that the masks prune, without a look at the weights."""
        return sum(self.pruned_weights().values()) / sum(layer.numel for layer in self.layers)

    def pruned_weights(self) -> dict[str, int]:
        """Name of each layer -> how many of its weights the masks prune; waits for the device once a group."""
        pruned = pruned_weights(self.groups, self.step_count)
        self._watch.check(self._stepped_by)
        return pruned

    def report(self) -> SparsityReport:
        """Zeros per layer and in total, counted in the weights.

        Raises:
            PruningError: a weight is not zero where its mask says pruned.
        """
        self.check_zeros()
        notes = [*self._notes, *(budget.note() for budget in self.budgets), *self._sparse.notes]
        return make_report(self.model, self.groups, self.masks(), self.step_count, notes)

    def state_dict(self) -> dict[str, Any]:
        """Step, masks as bits and scores; tensors and plain values that `torch.load` reads with weights_only.

        It is of the whole model: where weights are sharded, all processes make this call, get the same, and any number
        of processes can load it.

        Raises:
            PruningError: a weight is not zero where its mask prunes, so what is saved beside this would not be pruned.
        """
        self.check_zeros()
        return self._state()

    def _state(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "config": self.config.to_dict(),
            "layers": [[saved_layer(group, layer) for layer in group.layers] for group in self.groups],
            "step_count": self.step_count,
            "started": self._started,
            "groups": [group_state(group) for group in self.groups],
            "sparse_layers": self._sparse.state,
            "budgets": [budget.table.to_state() for budget in self.budgets],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; the weights are the caller's to restore.

        Raises:
            PruningError: the state is of another config or another model.
        """
        kept = checked_state(state, self._state(), self.groups)
        self.step_count = state["step_count"]
        self._started = state["started"]
        self._observed = self._holds = False
        for group, layers, saved in zip(self.groups, kept, state["groups"], strict=True):
            if layers != group.layers:
                group.take(layers)
            load_group_state(group, saved)
        for budget, table in zip(self.budgets, state.get("budgets", ()), strict=True):
            budget.take(CostTable.from_state(table))
        self._sparse.resume(state.get("sparse_layers"), self.step_count)


def _lr_of(lr: float | Callable[[Layer], Any] | None) -> Callable[[Layer], float]:
    if lr is None:
        raise PruningError("lr: group_lasso needs the learning rate; use attach(optimizer) or step(lr=...)")
    return lambda layer: checked_rate(layer.name, lr(layer) if callable(lr) else lr)
