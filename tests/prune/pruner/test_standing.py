"""What a Pruner says of itself, and what it warns of."""

import warnings

import pytest
from torch import nn

from trisparse import Pruner, PruningConfig, PruningError, prune_once

KEYS = {"pattern": "2:4", "start_step": 2, "end_step": 8, "pruning_frequency": 3}  # events at 2, 5 and 8


def test_repr_says_where_it_stands(make_mlp, sgd, train):
    model = make_mlp()
    pruner, optimizer = Pruner(model, PruningConfig(**KEYS, sparsity_decay_type="linear")), sgd(model)
    assert repr(pruner) == "Pruner(step 0; 2:4 of 2 layers at 0 of 0.5, next event at step 2, the last at 8)"
    with pruner.attach(optimizer):
        train(model, optimizer, 6)
        said = "Pruner(step 6, attached to SGD; 2:4 of 2 layers at 0.25 of 0.5, next event at step 8, the last at 8)"
        assert repr(pruner) == said
        train(model, optimizer, 3)
    assert repr(pruner) == "Pruner(step 9; 2:4 of 2 layers at 0.5 of 0.5, complete since step 8)"


def test_before_the_start_nothing_is_done(make_mlp):
    pruner = Pruner(make_mlp(), {"pattern": "2:4", "pruning_type": "magnitude", "start_step": 0, "end_step": 0})
    assert repr(pruner) == "Pruner(step 0; 2:4 of 2 layers at 0 of 0.5, next event at step 0, the last at 0)"
    pruner.start()
    assert repr(pruner) == "Pruner(step 0; 2:4 of 2 layers at 0.5 of 0.5, complete since step 0)"


def test_what_one_group_skips_another_may_have():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    groups = [{"pattern": "2:4", "on_misfit": "skip"}, {"pattern": "1x1", "op_names": ["^0$"], "target_sparsity": 0.5}]
    report = prune_once(model, pruning_configs=groups)
    assert {row.name: row.pattern for row in report.layers} == {"1": "2:4", "0": "1x1"}
    assert not report.notes


def test_repr_of_locks_budgets_and_several_groups(make_mlp):
    budget = PruningConfig(target_bytes=0.5, start_step=1, end_step=4, pruning_type="magnitude")
    assert (
        repr(Pruner(make_mlp(), budget))
        == "Pruner(step 0; 4x1 of 2 layers to target_bytes 0.5, next event at step 1, the last at 4)"
    )
    groups = PruningConfig(**KEYS, pruning_configs=[{"op_names": ["0"]}, {"op_names": ["2"], "pattern": "4x1"}])
    assert repr(Pruner(make_mlp(), groups)).count("1 layer at 0 of") == 2
    lock = PruningConfig(pattern="2:4", pruning_type="pattern_lock")
    assert repr(Pruner(make_mlp(), lock)) == "Pruner(step 0; 2:4 of 2 layers, locked)"


@pytest.mark.parametrize(("steps", "warns"), [(7, True), (8, False)])
def test_leaving_before_the_last_event_warns(make_mlp, sgd, train, steps, warns):
    model = make_mlp()
    pruner, optimizer = Pruner(model, KEYS), sgd(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pruner.attach(optimizer):
            train(model, optimizer, steps)
    assert [
        str(w.message).startswith("attach: the with block was left before the last event: Pruner(step 7")
        for w in caught
    ] == [True] * warns
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attachment = Pruner(model, KEYS).attach(optimizer)
        train(model, optimizer, 1)
        attachment.detach()  # which is asked for


def test_an_error_inside_is_not_followed_by_a_warning(make_mlp, sgd):
    model = make_mlp()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyError), Pruner(model, KEYS).attach(sgd(model)):
            raise KeyError


@pytest.mark.parametrize("on_misfit", ["error", "skip"])
def test_layers_that_a_pattern_does_not_divide(on_misfit):
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    keys = {"pattern": "2:4", "on_misfit": on_misfit}
    if on_misfit == "error":
        with pytest.raises(
            PruningError,
            match=r"does not divide 0 \(6 input columns.*\['\^0\$'\], or leave them dense by on_misfit: skip",
        ):
            prune_once(model, **keys)
        return
    report = prune_once(model, **keys)
    assert [row.name for row in report.layers] == ["1"]
    assert report.notes == ("left dense, since 2:4 does not divide them: 0 (6 input columns are no multiple of 4)",)
    with pytest.raises(
        PruningError, match="finds no layer for group 0.*left dense, since 2:4 does not divide them: 0 "
    ):
        prune_once(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2)), **keys)
    with pytest.raises(PruningError, match="on_misfit: 'skp' is not one of error, skip; did you mean 'skip'"):
        prune_once(model, pattern="2:4", on_misfit="skp")


def test_layers_that_are_alike_share_a_line():
    def model():
        return nn.ModuleDict({"a": nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 16)]), "b": nn.Linear(8, 8)})

    report = prune_once(model(), pattern="2:4", exclude_head=False)
    lines = str(report).splitlines()
    assert lines[0].split() == ["layer", "pattern", "shape", "zeros", "sparsity"]
    assert lines[1].split() == ["3", "layers", "2:4", "2", "shapes", "128", "0.5000"]
    report = prune_once(model(), pattern="4x1", exclude_head=False, pruning_configs=[
        {"op_names": ["^a"], "target_sparsity": 0.75, "pruning_scope": "local"}, {"op_names": ["^b"], "target_sparsity": 0.5}
    ])  # fmt: skip
    lines = str(report).splitlines()
    assert [line.split()[0:3] for line in lines[1:3]] == [["2", "layers", "in"], ["b", "4x1", "8x8"]]
    totals = [line for line in lines if line.startswith("zeros of ")]
    assert len({len(line) for line in totals}) == 1, "one column"
    assert "zeros of all Linear and Conv weights (Element-wise/matmul, Gemm, conv ratio)" in totals[1]
