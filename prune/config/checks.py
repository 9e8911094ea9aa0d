"""What the keys of a group may be."""

from __future__ import annotations

from collections.abc import Sequence

from trisparse.prune.config.group import MISFITS, OP_TYPES, PRUNING_TYPES, REDUCTIONS, SCOPES, GroupConfig
from trisparse.prune.config.own_parts import check_schedule, name_of
from trisparse.prune.config.schedules import SCHEDULES, sparsity_at
from trisparse.prune.errors import PruningError, nearest

_WITHOUT_TRAINING = {
    "retrain_free": "prune_once(model, 'retrain_free', batches, …)",
    "sparse_gpt": "prune_once(model, 'sparsegpt', batches, …)",
}


def check_group(c: GroupConfig) -> None:
    """Raise PruningError, which names the key, unless the values fit one another; a model may still not fit them."""
    if function := _WITHOUT_TRAINING.get(str(c.pruning_type)):
        raise PruningError(f"pruning_type: {c.pruning_type} prunes by batches, without training; call {function}")
    if not callable(c.pruning_type):
        _choice("pruning_type", c.pruning_type, PRUNING_TYPES)
    _choice("pruning_scope", c.pruning_scope, SCOPES)
    if not callable(c.sparsity_decay_type):
        _choice("sparsity_decay_type", c.sparsity_decay_type, tuple(SCHEDULES))
    _choice("criterion_reduce_type", c.criterion_reduce_type, REDUCTIONS)
    _choice("on_misfit", c.on_misfit, MISFITS)
    if not c.pruning_op_types:
        raise PruningError(f"pruning_op_types: got an empty list; want {' or '.join(OP_TYPES)}")
    for op_type in c.pruning_op_types:
        _choice("pruning_op_types", op_type, OP_TYPES)
    for name in ("lock_init_sparsity", "exclude_head"):
        if not isinstance(getattr(c, name), bool):
            raise PruningError(f"{name}: want true or false, got {getattr(c, name)!r}")
    _check_criterion(c)
    _check_ratios(c)
    _check_regularization(c)
    if not c.is_lock:
        _check_window(c)


def _check_criterion(c: GroupConfig) -> None:
    if not c.is_lock and c.criterion == "block_mask":
        _check_block_mask(c)
    if c.criterion == "taylor" and c.criterion_reduce_type == "max":
        raise PruningError(
            "criterion_reduce_type: max has no meaning for taylor, which sums up a unit; use mean or sum"
        )
    if c.seed is not None:
        _integer("seed", c.seed, 0)
        if c.criterion != "random":
            raise PruningError(f"seed: {c.seed} has no effect without pruning_type random; leave it out")


def _check_block_mask(c: GroupConfig) -> None:
    if c.pattern.is_nm:
        raise PruningError(
            f"pruning_type: {c.pruning_type} has one mask a block, and {c.pattern} chooses weights; use snip_momentum"
        )
    if c.criterion_reduce_type != "mean":
        raise PruningError(
            f"criterion_reduce_type: {c.criterion_reduce_type!r} has no effect, since the gradient of a mask is always "
            f"a sum; leave it out, or use pruning_type snip_momentum"
        )


def _check_ratios(c: GroupConfig) -> None:
    low, target, high = c.min_sparsity_ratio_per_op, c.target_sparsity, c.max_sparsity_ratio_per_op
    if target is None:  # a budget
        target = high
    _number("target_sparsity", target, 0, 1)
    _number("min_sparsity_ratio_per_op", low, 0, 1)
    _number("max_sparsity_ratio_per_op", high, 0, 1)
    if c.is_lock:
        return
    if target == 0:
        raise PruningError("target_sparsity: 0 prunes nothing; want a fraction above 0 and below 1")
    if c.pattern.is_nm and c.target_sparsity is not None:
        reach = 1 - c.pattern.n / c.pattern.m
        if target > reach + 1e-9:  # a rounded 2/3 is meant as 2/3
            raise PruningError(
                f"target_sparsity: {target} is out of reach for {c.pattern}, which keeps {c.pattern.n} of every "
                f"{c.pattern.m}; want at most {reach}"
            )
    if c.pattern.is_nm and c.is_progressive:
        raise PruningError(f"pruning_type: {c.pruning_type!r} can't cut an N:M group in parts; use {c.criterion!r}")
    if c.pattern.is_heads and c.is_progressive:
        raise PruningError(f"pruning_type: {c.pruning_type!r} can't cut a head in parts; use {c.criterion!r}")
    if target > high:
        raise PruningError(
            f"target_sparsity: {target} is out of reach with max_sparsity_ratio_per_op {high}; "
            "raise one or lower the other"
        )
    if low > target:
        raise PruningError(f"min_sparsity_ratio_per_op: {low} is above target_sparsity {target}; want at most {target}")


def _check_regularization(c: GroupConfig) -> None:
    if c.reg_type is None:
        if c.reg_coeff is not None:
            raise PruningError(f"reg_coeff: {c.reg_coeff} has no effect without reg_type; add reg_type: group_lasso")
        return
    _choice("reg_type", c.reg_type, ("group_lasso",))
    if c.reg_coeff is None:
        raise PruningError("reg_coeff: missing; reg_type group_lasso needs a strength, such as 0.001")
    _number("reg_coeff", c.reg_coeff, 0, float("inf"))
    if c.pattern.is_heads:
        raise PruningError("reg_type: group_lasso can't shrink a head, which is of several layers; leave reg_type out")
    if c.pattern.is_nm or c.is_lock:
        what = f"pattern {c.pattern}" if c.pattern.is_nm else "pruning_type pattern_lock"
        raise PruningError(f"reg_type: group_lasso shrinks whole units, which {what} has none of; leave reg_type out")


def _check_window(c: GroupConfig) -> None:
    for name in ("start_step", "end_step"):
        value = getattr(c, name)
        if value is None:
            raise PruningError(f"{name}: missing; give the optimizer step at which pruning {name.split('_')[0]}s")
        if isinstance(value, float):
            if not 0 <= value <= 1:
                raise PruningError(f"{name}: want a whole number of steps, or a fraction from 0.0 to 1.0, got {value}")
        else:
            _integer(name, value, 0)
    _integer("pruning_frequency", c.pruning_frequency, 1)
    start, end = c.start_step, c.end_step
    assert start is not None
    assert end is not None
    if end < start and type(end) is type(start):
        raise PruningError(f"end_step: {end} is before start_step {start}; want end_step >= start_step")
    if c.has_fractions:  # all else shows once their steps are known
        return
    target = 0.5 if c.target_sparsity is None else c.target_sparsity  # what a budget takes shows with the model
    if callable(c.sparsity_decay_type):
        check_schedule(c.sparsity_decay_type, target, c.last_event)
    if start == 0 and c.needs_gradient and sparsity_at(c.sparsity_decay_type, target, 0, c.last_event):
        raise PruningError(
            f"start_step: {name_of(c.pruning_type)} has no gradient to score before the first step; "
            "want start_step >= 1, or pruning_type magnitude"
        )


def _choice(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise PruningError(f"{name}: {value!r} is not one of {', '.join(known)}{nearest(str(value), known)}")


def _number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value < high:
        raise PruningError(f"{name}: want a number from {low} up to but not {high}, got {value!r}")


def _integer(name: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise PruningError(f"{name}: want a whole number of at least {low}, got {value!r}")
