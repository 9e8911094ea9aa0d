"""Criteria that plain torch computes, against values worked out by hand."""

import copy
from fractions import Fraction

import pytest
import torch
from torch import nn

from trisparse import Pruner, PruningConfig, prune_once
from trisparse.prune.choosing.criteria import lamp


def one_layer(weight, dtype=torch.float32):
    model = nn.Sequential(nn.Linear(len(weight[0]), len(weight), bias=False, dtype=dtype))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(weight))
    return model


def scores(weight, grad, scale=1.0, dtype=torch.float32, **keys):
    """Of the first step, whose event comes at the second so that they are still there."""
    model = one_layer(weight, dtype)
    config = PruningConfig(target_sparsity=0.5, start_step=1, end_step=2, sparsity_decay_type=early,
                           exclude_head=False, **keys)  # fmt: skip
    pruner = Pruner(model, config)
    model[0].weight.grad = torch.tensor(grad, dtype=dtype)
    pruner.observe(grad_scale=scale)
    return [score.tolist() for score in pruner.groups[0].scoring.scores]


def early(target, progress):
    return target if progress == 1 else target / 2


W, G = [[1.0, 2.0], [3.0, 4.0]], [[1.0, 1.0], [-1.0, 0.5]]  # W * G = [[1, 2], [-3, 2]]


@pytest.mark.parametrize(
    ("pruning_type", "pattern", "reduce", "want"),
    [
        ("taylor", "2x1", "sum", [[4.0, 16.0]]),  # (1 - 3)^2, (2 + 2)^2
        ("taylor", "2x1", "mean", [[2.0, 8.0]]),  # of two weights each
        ("snip", "2x1", "sum", [[4.0, 4.0]]),  # |1| + |-3|, |2| + |2|: signs are lost before the sum
        ("taylor", "1xchannel", "sum", [[9.0], [1.0]]),  # (1 + 2)^2, (2 - 3)^2
        ("taylor", "channelx1", "sum", [[4.0], [16.0]]),
        ("taylor", "1x1", "mean", [[1.0, 4.0], [9.0, 4.0]]),
        ("taylor", "1:2", "mean", [[1.0, 4.0], [9.0, 4.0]]),
    ],
)
def test_taylor_sums_up_a_unit_before_it_squares(pruning_type, pattern, reduce, want):
    keys = {"pruning_type": pruning_type, "pattern": pattern, "criterion_reduce_type": reduce}
    assert scores(W, G, **keys) == [want]


def test_taylor_of_scaled_and_of_half_gradients():
    scaled = [[8 * value for value in row] for row in G]
    keys = {"pruning_type": "taylor", "pattern": "2x1", "criterion_reduce_type": "sum"}
    assert scores(W, scaled, scale=8.0, **keys) == [[[4.0, 16.0]]]
    # 1.0078125 is 1 + 2^-7; times itself 1.01568..., which bf16 would round to 1.015625
    one = [[1.0078125]]
    exact = (1 + 2.0**-7) ** 4
    assert scores(one, one, dtype=torch.bfloat16, pruning_type="taylor", pattern="1x1") == [[[pytest.approx(exact)]]]


def test_a_gradient_that_is_not_finite_is_no_score():
    model = one_layer(W)
    config = PruningConfig(
        pruning_type="taylor", pattern="1x1", target_sparsity=0.5, start_step=1, end_step=1, exclude_head=False
    )
    pruner = Pruner(model, config)
    model[0].weight.grad = torch.tensor([[1.0, float("inf")], [1.0, 1.0]])
    pruner.observe()
    with pytest.raises(ValueError, match=r"pruning_type: taylor has no score for 0: no finite gradient came in this"):
        pruner.step()


@pytest.mark.parametrize(
    ("costs", "want"),
    [
        ([1.0, 4.0, 4.0, 0.0], [1 / 9, 4 / 8, 4 / 4, 0 / 9]),  # of equal ones the first is divided by both
        ([9.0], [1.0]),
        ([0.0, 0.0], [0.0, 0.0]),
        ([3.0, 3.0, 3.0], [1 / 3, 1 / 2, 1.0]),
        ([1.0, float("inf"), float("nan"), 3.0], [1 / 4, float("inf"), float("inf"), 1.0]),
        ([1e-60, 1e-60], [1 / 2, 1.0]),
    ],
)
def test_lamp_by_hand(costs, want):
    found = lamp(torch.tensor([costs], dtype=torch.float64))
    assert found.dtype == torch.float32
    assert found.tolist()[0] == pytest.approx(want, rel=1e-6)


def test_lamp_is_its_definition():
    costs = torch.randint(0, 50, (30, 20), generator=torch.Generator().manual_seed(0)) ** 2
    flat = costs.flatten().tolist()
    order = sorted(range(len(flat)), key=lambda i: (flat[i], i))
    want, rest = [0.0] * len(flat), sum(flat)
    for i in order:
        want[i] = float(Fraction(flat[i], rest))
        rest -= flat[i]
    assert lamp(costs.double()).flatten().tolist() == pytest.approx(want, rel=1e-6, abs=0)


def test_lamp_lets_layers_of_any_scale_compete():
    """Magnitude takes all of the small layer; what is divided by its own layer's sums goes from both."""
    found = {}
    for criterion in ("magnitude", "lamp"):
        model = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Linear(1, 3, bias=False))
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor([[1.0, 2.0, 2.0]]))  # 1/9, 4/8, 1
            model[1].weight.copy_(torch.tensor([[30.0], [10.0], [20.0]]))  # 1, 1/14, 4/13
        config = PruningConfig(
            pruning_type=criterion, pattern="1x1", target_sparsity=0.5, start_step=0, end_step=0, exclude_head=False,
            max_sparsity_ratio_per_op=0.99,
        )  # fmt: skip
        Pruner(model, config).start()
        found[criterion] = [layer.weight.flatten().tolist() for layer in model]
    assert found == {
        "magnitude": [[0.0, 0.0, 2.0], [30.0, 0.0, 20.0]],
        "lamp": [[0.0, 2.0, 2.0], [30.0, 0.0, 0.0]],
    }


@pytest.mark.parametrize(
    ("pattern", "reduce", "want"),
    [
        ("2x1", "mean", [[10 / 30, 1.0]]),  # 1 + 9 and 4 + 16, halved
        ("2x1", "sum", [[10 / 30, 1.0]]),
        ("2x1", "max", [[9 / 25, 1.0]]),
        ("1:2", "mean", [[1 / 30], [9 / 25]]),  # of each two the one that goes
    ],
)
def test_lamp_of_units(pattern, reduce, want):
    keys = {"pruning_type": "lamp", "pattern": pattern, "criterion_reduce_type": reduce, "target_sparsity": 0.25}
    pruner = Pruner(one_layer(W), PruningConfig(start_step=1, end_step=1, exclude_head=False, **keys))
    (group,) = pruner.groups
    group.selection.ask(0.25)
    assert group.prune()[0].tolist() == [pytest.approx(row) for row in want]


def random_order(seed, name="0", shape=(4, 6), **keys):
    model = nn.Sequential(nn.Linear(shape[1], shape[0], bias=False))
    config = PruningConfig(
        pruning_type="random", pattern="1x1", start_step=1, end_step=1, exclude_head=False, seed=seed, **keys
    )
    (group,) = Pruner(model, config).groups
    group.selection.ask(0.5)
    return group.prune()[0]


def test_random_is_a_hash_of_seed_layer_and_place():
    from hashlib import blake2b

    def signed(number):
        return (number + 2**63) % 2**64 - 2**63

    start = int.from_bytes(blake2b(b"3 0", digest_size=7).digest(), "little")
    want = []
    for place in range(24):
        mixed = signed((start + place + 1) * 0x1E3779B97F4A7C15)
        mixed = signed((mixed ^ (mixed >> 30)) * 0x3F58476D1CE4E5B9)
        mixed = signed((mixed ^ (mixed >> 27)) * 0x14D049BB133111EB)
        want.append(((mixed ^ (mixed >> 31)) & 0xFFFFFF) / 2**24)
    assert random_order(3).flatten().tolist() == want
    assert torch.equal(random_order(None), random_order(0))
    assert not torch.equal(random_order(0), random_order(1))
    many = random_order(0, shape=(200, 200))
    assert abs(float(many.mean()) - 0.5) < 0.01
    assert len(many.unique()) > 39000


@pytest.mark.parametrize("pruning_type", ["taylor", "lamp", "random", "taylor_progressive", "random_progressive"])
def test_resuming_and_the_optimizers_pass_change_nothing(make_mlp, train, pruning_type):
    from trisparse import MaskedAdamW

    config = PruningConfig(
        pattern="4x1", target_sparsity=0.7, pruning_type=pruning_type, start_step=1, end_step=9, pruning_frequency=4
    )
    model = make_mlp()
    whole = copy.deepcopy(model)
    pruner, optimizer = Pruner(whole, config), torch.optim.AdamW(whole.parameters())
    with pruner.attach(optimizer):
        train(whole, optimizer, 6)
        saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict(), pruner.state_dict()))
        train(whole, optimizer, 5, first=6)
    again, other = copy.deepcopy(model), MaskedAdamW(model.parameters())
    optimizer = torch.optim.AdamW(again.parameters())
    resumed = Pruner(again, config)
    for part, state in zip((again, optimizer, resumed), saved, strict=True):
        part.load_state_dict(state)
    with resumed.attach(optimizer):
        train(again, optimizer, 5, first=6)
    in_one_pass = Pruner(model, config)
    with in_one_pass.attach(other):
        train(model, other, 11)
    assert pruner.mask_hash() == resumed.mask_hash() == in_one_pass.mask_hash()
    assert pruner.report().pruned_layers == pytest.approx(0.7, abs=0.002)


def test_prune_once_takes_no_seed(make_mlp):
    with pytest.raises(ValueError, match="seed: prune_once prunes at once"):
        prune_once(make_mlp(), pattern="2:4", seed=1)
