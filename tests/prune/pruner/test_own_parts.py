"""Criteria, schedules and patterns of one's own, through the Pruner."""

import copy
import io

import pytest
import torch
from torch import nn

from trisparse import Pruner, PruningConfig, PruningError, prune_once

ONCE = {"start_step": 1, "end_step": 1, "exclude_head": False}


def snip(weight, grad):
    return (weight * grad).abs()


def running(weight, grad, score):
    return 0.9 * score + (weight * grad).abs()


def magnitude(weight):
    return weight.abs()


def rows_for_the_first(name, shape):
    return (1, shape[1]) if name == "0" else (8, 2)


@pytest.mark.parametrize("pattern", ["4x1", "2:4", "channelx1", "1xchannel"])
@pytest.mark.parametrize(
    ("own", "ours", "reduce"),
    [
        (snip, "snip", "mean"),
        (snip, "snip", "max"),
        (running, "snip_momentum", "mean"),  # of max, theirs is a mean of maxima, and this the maximum of means
        (magnitude, "magnitude", "max"),
    ],
)
def test_written_anew_a_criterion_prunes_what_ours_does(make_mlp, train, own, ours, pattern, reduce):
    hashes = []
    for kind in (own, ours):
        model = make_mlp()
        config = PruningConfig(
            pattern=pattern, target_sparsity=0.4, pruning_type=kind, criterion_reduce_type=reduce, start_step=1,
            end_step=7, pruning_frequency=3,
        )  # fmt: skip
        pruner, optimizer = Pruner(model, config), torch.optim.SGD(model.parameters(), lr=0.05)
        with pruner.attach(optimizer):
            train(model, optimizer, 8, after=lambda step, p=pruner: hashes.append(p.mask_hash()))
    assert hashes[:8] == hashes[8:]
    assert len(set(hashes)) > 2


@pytest.mark.parametrize("pattern", ["1x1", "channelx1", "1xchannel"])
@pytest.mark.parametrize("make", [lambda: nn.Conv2d(3, 4, 2), lambda: nn.ConvTranspose2d(3, 4, 2)])
def test_it_sees_outputs_by_taps_and_inputs_whatever_the_pattern(pattern, make):
    module, given = make(), []
    is_transposed = isinstance(module, nn.ConvTranspose2d)

    def by_place(weight, grad):
        given[:] = [weight.clone(), grad.clone()]
        weight.zero_(), grad.zero_()  # copies, so nothing is lost
        score = torch.arange(float(weight.numel())).view(weight.shape)
        return score % 3 if pattern == "channelx1" else score  # by input channel, the fastest axis

    model = nn.Sequential(module)
    weight = module.weight
    before = weight.detach().clone()
    pruner = Pruner(model, PruningConfig(pattern=pattern, target_sparsity=1 / 3, pruning_type=by_place, **ONCE))
    weight.grad = torch.randn_like(weight)
    pruner.observe(grad_scale=2.0)
    order = (1, 2, 3, 0) if is_transposed else (0, 2, 3, 1)
    assert torch.equal(given[0], before.permute(order).reshape(4, 12))
    assert torch.equal(given[1], weight.grad.permute(order).reshape(4, 12) / 2)
    assert torch.equal(weight, before)
    pruner.step()
    zero = (weight == 0).permute(order).reshape(4, 12)
    want = {
        "1x1": torch.arange(48).view(4, 12) < 16,
        "1xchannel": torch.arange(48).view(4, 12) < 12,  # 12 of 48 is nearer to 16 than 24
        "channelx1": (torch.arange(48).view(4, 12) % 3) == 0,
    }
    assert torch.equal(zero, want[pattern])


def test_a_score_of_before_is_one_a_weight_and_comes_back_after_a_resume(make_mlp, train):
    steps = []

    def counts(weight, grad, score):
        assert bool((score == len(steps) // 2).all())  # once for each of two layers a step
        steps.append(weight.shape)
        return score + 1

    config = PruningConfig(pattern="4x1", target_sparsity=0.5, pruning_type=counts, start_step=2, end_step=4)
    model = make_mlp()
    pruner, optimizer = Pruner(model, config), torch.optim.SGD(model.parameters(), lr=0.05)
    with pruner.attach(optimizer):
        train(model, optimizer, 3)
    file = io.BytesIO()
    torch.save(pruner.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert [list(score.shape) for score in saved["groups"][0]["scores"]] == [[32, 16], [32, 32]]
    resumed, optimizer = Pruner(copy.deepcopy(model), config), None
    resumed.load_state_dict(saved)
    optimizer = torch.optim.SGD(resumed.model.parameters(), lr=0.05)
    with resumed.attach(optimizer):
        train(resumed.model, optimizer, 3, first=3)
    assert len(steps) == 8, "no call after the last event"


def test_a_gradient_that_is_not_finite_is_not_shown():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    seen = []
    pruner = Pruner(model, PruningConfig(pattern="1x1", pruning_type=lambda w, g: seen.append(g) or w.abs(), **ONCE))
    model[0].weight.grad = torch.full((2, 2), float("nan"))
    model[1].weight.grad = torch.ones(2, 2)
    pruner.observe()
    assert [grad.tolist() for grad in seen] == [[[1.0, 1.0], [1.0, 1.0]]]
    assert pruner.groups[0].scoring.seen.tolist() == [False, True]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda w: w, r"gives 0 a score of -2; want finite ones of at least 0, the lowest for what goes first"),
        (lambda w: w / 0, "gives 0 a score of inf"),
        (lambda w: w * float("nan"), "gives 0 a score of nan"),
        (
            lambda w: w.abs().double(),
            r"returned float64 \[2, 2\] for 0; want float32 \[2, 2\], a score for each weight",
        ),
        (lambda w: w.abs().sum(0), r"returned float32 \[2\] for 0"),
        (lambda w: 3.0, "returned a float for 0"),
        (lambda w: w.absolutely(), "failed for 0: AttributeError: 'Tensor' object has no attribute 'absolutely'"),
    ],
)
def test_what_is_no_score_is_one_line(returned, message):
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
    before = model[0].weight.clone()

    def own(weight, grad):
        return returned(weight)

    pruner = Pruner(model, PruningConfig(pattern="1x1", pruning_type=own, **ONCE))
    model[0].weight.grad = torch.ones(2, 2)
    with pytest.raises(PruningError, match=message) as raised:
        pruner.observe()
    assert str(raised.value).startswith("pruning_type: ")
    assert "own" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert torch.equal(model[0].weight, before)


def test_a_schedule_is_followed(make_mlp, train, sgd):
    def halves(target, progress):
        return target / 2 if progress < 1 else target

    model = make_mlp()
    config = PruningConfig(
        pattern="1x1", target_sparsity=0.5, sparsity_decay_type=halves, start_step=2, end_step=4, exclude_head=False
    )
    pruner, optimizer, seen = Pruner(model, config), sgd(model), []
    with pruner.attach(optimizer):
        train(model, optimizer, 5, after=lambda step: seen.append(round(pruner.sparsity(), 3)))
    assert seen == [0.0, 0.25, 0.25, 0.5, 0.5]


def test_a_pattern_gives_each_layer_blocks_of_its_own(make_mlp, train, sgd):
    model = make_mlp()
    config = PruningConfig(pattern=rows_for_the_first, target_sparsity=0.5, start_step=1, end_step=3)
    pruner, optimizer = Pruner(model, config), sgd(model)
    with pruner.attach(optimizer):
        train(model, optimizer, 4)
    assert pruner.groups[0].weights.blocks == [(1, 16), (8, 2)]
    masks = pruner.masks()
    assert all(len(row.unique()) == 1 for row in masks["0"])
    assert all(len(block.unique()) == 1 for block in masks["2"].view(4, 8, 16, 2).transpose(1, 2).reshape(64, 16))
    report = pruner.report()
    assert report.pattern_verified
    assert [row.pattern for row in report.layers] == ["1x16", "8x2"]
    assert any(note == f"group 0: pattern {__name__}.rows_for_the_first" for note in report.notes)
    assert report.pruned_layers == pytest.approx(0.5, abs=8 / 1536)


def test_a_pattern_sees_names_and_2d_shapes():
    given = []
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Conv1d(4, 6, 1))
    prune_once(model, pattern=lambda name, shape: given.append((name, shape)) or (2, 3), exclude_head=False,
               excluded_op_names=["2"], target_sparsity=0.5)  # fmt: skip
    assert given == [("0", (4, 12))]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ((3, 1), r"pattern: .*<lambda> does not divide 0 \(32 output rows are no multiple of 3\)"),
        ((4, 0), r"<lambda> gives \(4, 0\) for 0 \[32, 16\]; want the rows and columns of a unit, such as \(4, 1\)"),
        ("4x1", "gives '4x1' for 0"),
        (4, "gives 4 for 0"),
        ((4.0, 1), r"gives \(4.0, 1\) for 0"),
    ],
)
def test_a_block_that_is_none(make_mlp, block, message):
    with pytest.raises(PruningError, match=message):
        Pruner(make_mlp(), PruningConfig(pattern=lambda name, shape: block, start_step=1, end_step=2))


def test_a_state_says_which_functions_to_give(make_mlp):
    window = {"target_sparsity": 0.5, "start_step": 1, "end_step": 2}
    state = Pruner(make_mlp(), PruningConfig(pruning_type=snip, pattern=rows_for_the_first, **window)).state_dict()
    assert state["config"][0]["pruning_type"] == f"{__name__}.snip"
    for keys, message in (
        (
            {"pattern": rows_for_the_first},
            f"this one has 'snip_momentum'; give the function {__name__}.snip as pruning_type",
        ),
        ({"pruning_type": snip}, f"this one has '4x1'; give the function {__name__}.rows_for_the_first as pattern"),
    ):
        with pytest.raises(PruningError, match=message):
            Pruner(make_mlp(), PruningConfig(**keys, **window)).load_state_dict(state)
    pruner = Pruner(make_mlp(), PruningConfig(pruning_type=snip, pattern=rows_for_the_first, **window))
    pruner.load_state_dict(state)
    state["layers"][0][1][2] = [1, 8]  # as a function of the same name may have given before
    with pytest.raises(PruningError, match="state: .*rows_for_the_first gave other block sizes when it"):
        pruner.load_state_dict(state)
