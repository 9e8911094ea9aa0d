"""Cool-down on packed layers: nothing changes but the kernels."""

import json

import pytest
import torch
from torch import nn

from trisparse import Pruner, PruningConfig
from trisparse.kernels.cpu import launch
from trisparse.prune.errors import PruningError
from trisparse.prune.glue import sparse_cooldown
from trisparse.prune.glue.parse import parse_arguments
from trisparse.prune.glue.sparse_cooldown import SparseCooldown, is_faster
from trisparse.sparse_ops import Linear24Train

FLAGS = ["--do_prune", "--pruning_pattern", "2:4", "--num_train_epochs", "3", "--cooldown_epochs", "2",
         "--pruning_frequency", "3", "--mixed_precision", "bf16"]  # fmt: skip


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(sparse_cooldown, "is_faster", lambda *args: True)


@pytest.fixture
def pruned(make_mlp, sgd, train):
    """A model, its Pruner, past the last event, and the optimizer."""

    def make(pattern="2:4", **config):
        model = make_mlp()
        optimizer = sgd(model)
        pruner = Pruner(model, PruningConfig(pattern=pattern, start_step=1, end_step=2, **config))
        pruner.attach(optimizer)
        train(model, optimizer, 3)
        return model, pruner, optimizer

    return make


def test_layers_are_packed_inside_and_dense_outside(pruned, always, train):
    model, pruner, optimizer = pruned()
    dense = list(model)
    cooldown = SparseCooldown(model, pruner, 8, torch.float32)
    for _ in range(2):
        with cooldown.epoch():
            assert [type(layer) for layer in model] == [Linear24Train, nn.ReLU, Linear24Train, nn.ReLU, nn.Linear]
            assert model[0].weight is dense[0].weight
            train(model, optimizer, 2)
        assert list(model) == dense
    assert cooldown.note() == "sparse_cooldown: 2 of 2 layers with 2:4 masks trained packed"
    assert pruner.report().pattern_verified
    with pytest.raises(RuntimeError, match="anything"), cooldown.epoch():
        raise RuntimeError("anything")
    assert list(model) == dense


def test_it_trains_like_dense(pruned, always, train):
    (model, pruner, optimizer), (twin, _, other) = pruned(), pruned()
    with SparseCooldown(model, pruner, 8, torch.float32).epoch():
        train(model, optimizer, 5, first=3)
    train(twin, other, 5, first=3)
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_run_that_goes_on_packs_what_the_one_before_did(pruned):
    model, pruner, _ = pruned()
    cooldown = SparseCooldown(model, pruner, 8, torch.float32)
    cooldown.names = ["2"]
    with cooldown.epoch():
        assert [isinstance(layer, Linear24Train) for layer in model] == [False, False, True, False, False]
    assert cooldown.note() == "sparse_cooldown: 1 of 2 layers with 2:4 masks trained packed"


def test_layers_with_hooks_stay(pruned, always):
    model, pruner, _ = pruned()
    model[0].register_forward_hook(lambda *args: None)
    model[2].bias.requires_grad_(False)
    cooldown = SparseCooldown(model, pruner, 8, torch.float32)
    with cooldown.epoch():
        assert not any(isinstance(layer, Linear24Train) for layer in model)


def test_only_final_24_masks_are_packed(make_mlp, pruned, always):
    model, pruner, _ = pruned("4x1", target_sparsity=0.5)
    cooldown = SparseCooldown(model, pruner, 8, torch.float32)
    with cooldown.epoch():
        assert not any(isinstance(layer, Linear24Train) for layer in model)
    assert cooldown.note() == "sparse_cooldown: 0 of 0 layers with 2:4 masks trained packed; dense is faster here"
    model = make_mlp()
    early = SparseCooldown(
        model, Pruner(model, PruningConfig(pattern="2:4", start_step=1, end_step=2)), 8, torch.float32
    )
    with early.epoch():
        assert not any(isinstance(layer, Linear24Train) for layer in model)
    assert early.names is None
    assert early.note().startswith("sparse_cooldown: no epoch began with final masks")


def test_masks_that_are_24_both_ways_are_packed_both_ways(make_mlp, always):
    model = make_mlp()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight[:, ::2] = 0
            layer.weight[::2] = 0
    pruner = Pruner(model, PruningConfig(pattern="2:4", pruning_type="pattern_lock"))
    pruner.start()
    with SparseCooldown(model, pruner, 8, torch.float32).epoch():
        assert model[0].transposed
        assert torch.equal(model[0].mask(), pruner.masks()["0"])


def test_a_cpu_stays_dense(pruned):
    model, pruner, _ = pruned()
    assert not is_faster(model[0], Linear24Train.from_linear(model[0]), 8, torch.float32)
    cooldown = SparseCooldown(model, pruner, 8, torch.float32)
    with cooldown.epoch():
        assert not any(isinstance(layer, Linear24Train) for layer in model)
    assert cooldown.note() == "sparse_cooldown: 0 of 2 layers with 2:4 masks trained packed; dense is faster here"


def test_a_glue_run(world, glue, weights, monkeypatch):
    monkeypatch.setattr(launch, "function_of", lambda name: None)  # plain products, equal to the bit
    plain = glue(world, "dense", "plain-cooldown", *FLAGS)
    honest = glue(world, "dense", "honest-cooldown", *FLAGS, "--sparse_cooldown")
    assert any("0 of 12 layers with 2:4 masks trained packed; dense is faster" in note for note in honest["notes"])
    monkeypatch.setattr(sparse_cooldown, "is_faster", lambda *args: True)
    packed = glue(world, "dense", "packed-cooldown", *FLAGS, "--sparse_cooldown")
    assert any("12 of 12 layers with 2:4 masks trained packed" in note for note in packed["notes"])
    assert packed["pattern_verified"]
    assert not any("sparse_cooldown" in note for note in plain["notes"])
    mine, theirs = weights(world / "packed-cooldown"), weights(world / "plain-cooldown")
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name])
    settings = json.loads((world / "packed-cooldown" / "all_results.json").read_text())["arguments"]
    assert settings["sparse_cooldown"] is True


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pruning_pattern", "4x1", "--cooldown_epochs", "1", "--mixed_precision", "bf16"],
         "--sparse_cooldown: packs 2:4 layers, and the pattern is 4x1; use 2:4"),
        (["--pruning_pattern", "4:8", "--cooldown_epochs", "1", "--mixed_precision", "bf16"],
         "--sparse_cooldown: packs 2:4 layers, and the pattern is 4:8; use 2:4"),
        (["--pruning_pattern", "2:4", "--cooldown_epochs", "1"],
         "--sparse_cooldown: sparse tensor cores multiply 16 bits; add --mixed_precision bf16 or fp16"),
        (["--pruning_pattern", "2:4", "--mixed_precision", "bf16"],
         "--sparse_cooldown: there is no cool-down; add --cooldown_epochs"),
    ],
)  # fmt: skip
def test_flags_that_cannot_work(world, argv, flags, message):
    with pytest.raises(PruningError) as error:
        parse_arguments(argv(world, "dense", "nowhere", "--do_prune", "--sparse_cooldown", *flags))
    assert str(error.value) == message
    with pytest.raises(PruningError, match="--sparse_cooldown: has no effect without --do_prune"):
        parse_arguments(argv(world, "dense", "nowhere", "--sparse_cooldown"))
