"""Steps as fractions of all, and what stands for a config."""

import inspect
import json

import pytest
from torch import nn

from trisparse import Pruner, PruningConfig, PruningError, prune_once
from trisparse.prune.config.group import KEYS

KEYS_2 = {"pattern": "2:4", "start_step": 0.1, "end_step": 0.75}


def test_fractions_of_the_total():
    group = PruningConfig(**KEYS_2, total_steps=200).groups[0]
    assert group.window == (20, 150, 1)
    assert [type(step) for step in group.window] == [int] * 3
    config = PruningConfig(start_step=1, pruning_configs=[{**KEYS_2}, {"op_names": ["a"], "end_step": 1.0}])
    assert [g.has_fractions for g in config.groups] == [True, True]
    assert [g.window for g in config.in_steps(30).groups] == [(3, 22, 1), (1, 30, 1)]
    assert PruningConfig(pattern="2:4", start_step=5, end_step=0.75).in_steps(40).groups[0].window == (5, 30, 1)
    assert config.in_steps(30).in_steps(99) == config.in_steps(30)
    assert PruningConfig(pruning_configs=config.to_dict()) == config
    assert PruningConfig(pattern="2:4", start_step=1, end_step=9, total_steps=9).groups[0].window == (1, 9, 1)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"end_step": 1.5}, "end_step: want a whole number of steps, or a fraction from 0.0 to 1.0, got 1.5"),
        ({"start_step": 0.9}, "end_step: 0.75 is before start_step 0.9"),
        ({"total_steps": 0.5}, "total_steps: want how many steps the optimizer makes in all, got 0.5"),
        ({"total_steps": 20, "end_step": 21}, "end_step: want at most 20, the steps that are made in all, got 21"),
        (
            {"start_step": 0.0, "end_step": 1},
            "end_step: 1 is the first step, and start_step a fraction; write 1.0 for all",
        ),
        ({"total_steps": 4}, "start_step: snip_momentum has no gradient to score before the first step"),
        ({"total_steps": 40, "start_step": 31}, "end_step: 30 is before start_step 31"),
    ],
    ids=str,
)
def test_mistakes(keys, message):
    with pytest.raises(PruningError, match=message):
        PruningConfig(**KEYS_2 | {"sparsity_decay_type": lambda target, progress: target} | keys)


def test_a_pruner_wants_to_know_how_many_steps_there_are():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    with pytest.raises(
        PruningError, match=r"total_steps: missing; start_step 0.1 is a fraction of the optimizer's steps"
    ):
        Pruner(model, PruningConfig(**KEYS_2))
    assert Pruner(model, PruningConfig(**KEYS_2).in_steps(40)).groups[0].config.window == (4, 30, 1)


def test_what_stands_for_a_config(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    keys = {"pattern": "2:4", "start_step": 1, "end_step": 9}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(keys))
    want = PruningConfig(**keys)
    for config in (want, keys, [keys], file, str(file)):
        assert Pruner(model, config).config == want
    with pytest.raises(
        PruningError, match="config: want a PruningConfig, its keys in a dict, or a file of them, got int"
    ):
        Pruner(model, 3)
    with pytest.raises(PruningError, match=r"nowhere.yaml: no such file, and no recipe of that name"):
        Pruner(model, "nowhere.yaml")
    for mistake in ({"patern": "2:4"}, {"self": 1}, {2: 3}):
        with pytest.raises(PruningError, match="unknown key"):
            Pruner(model, mistake)
    file.write_text(json.dumps({**keys, "pattern": None}))
    assert str(PruningConfig.load(file, defaults={"pattern": "2:4"}).groups[0].pattern) == "2:4"


def test_keys_beside_a_file_win(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"pattern": "4x1", "target_sparsity": 0.75, "end_step": 9}))
    report = prune_once(model, config=file, target_sparsity=0.5)
    assert report.pruned_layers == 0.5
    assert report.notes == ("config: pruned at once; no use for its end_step",)
    file.write_text(json.dumps({"pattern": "4x1"}))
    with pytest.raises(PruningError, match="config.json: target_sparsity: missing"):
        prune_once(model, config=file)


def test_an_editor_sees_every_key():
    parameters = inspect.signature(PruningConfig).parameters
    assert set(parameters) == {*KEYS, "pruning_configs", "unknown"}
    assert all(p.default is None for name, p in parameters.items() if name != "unknown")


@pytest.mark.parametrize("config", ["object", "dict", "list", "file"])
def test_prune_once_takes_what_and_how_far_of_a_config(config, tmp_path):
    keys = {"pattern": "4x1", "target_sparsity": 0.5, "start_step": 3, "end_step": 9, "pruning_type": "snip"}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(keys))
    given = {"object": PruningConfig(**keys), "dict": keys, "list": [keys], "file": file}[config]
    models = [nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    report = prune_once(models[0], config=given)
    prune_once(models[1], pattern="4x1", target_sparsity=0.5)
    assert models[0][0].weight.equal(models[1][0].weight)
    assert report.pruned_layers == 0.5
    assert report.notes[0].startswith("config: pruned at once; ")


def test_prune_once_has_no_use_for_lasso_and_seeds():
    keys = {"pattern": "4x1", "target_sparsity": 0.5, "start_step": 1, "end_step": 9}
    for more in ({"reg_type": "group_lasso", "reg_coeff": 0.1}, {"pruning_type": "random", "seed": 3}):
        report = prune_once(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), config=PruningConfig(**keys, **more))
        assert report.pruned_layers == 0.5


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "pattern: missing; want what goes together, such as '2:4'"),
        (
            {"pattern": "4x1"},
            "target_sparsity: missing; want which fraction of the weights goes, such as 0.5, or target_bytes",
        ),
        ({"target_sparsity": 0.5}, "pattern: missing"),
        ({"pruning_configs": [{"pattern": "4x1"}]}, "target_sparsity: missing"),
        ({"config": {"pattern": "1x1"}}, "target_sparsity: missing"),
        (
            {"config": {"pattern": "2:4"}, "op_names": ["0"]},
            "op_names: config says what to prune already; put it there",
        ),
        ({"config": PruningConfig(pruning_type="pattern_lock")}, "config: pattern_lock prunes nothing"),
        (
            {"pattern": "2:4", "end_step": 3},
            "end_step: prune_once prunes at once, by its method; for a schedule use Pruner",
        ),
        ({"patern": "2:4"}, "patern: unknown key; did you mean 'pattern'"),
        ({"pattern": "4x1", "target_sparisty": 0.5}, "target_sparisty: unknown key; did you mean 'target_sparsity'"),
        ({"config": {1: 2, "pattern": "2:4"}}, "1: unknown key"),
        (
            {"config": {"pattern": "2:4", "pruning_configs": [{"pruning_type": "pattern_lock"}]}},
            "config: pattern_lock prunes nothing",
        ),
        (
            {"pattern": "1x1", "layer_sparsity": {"^0$": 0.5}, "exclude_head": False},
            "target_sparsity: missing; layer_sparsity says nothing of 1",
        ),
        ({"pattern": "2:4", "loss": len}, "loss: has no effect without method 'retrain_free'; leave it out"),
        ({"pattern": "2:4", "method": "wandas"}, "method: 'wandas' is not one of magnitude, .*; did you mean 'wanda'"),
    ],
    ids=str,
)
def test_prune_once_asks_for_what_and_how_much(keys, message):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    with pytest.raises(PruningError, match=message):
        prune_once(model, **keys)
    assert bool((model[0].weight != 0).all())
