"""Retrain-free: Fisher information of masks, what is exchanged after it, by hand and on models."""

import itertools

import pytest
import torch
from torch import nn

from trisparse import PruningError, compact, prune_once
from trisparse.prune.one_shot.retrain_free import rearranged


def squared(model, batch):
    return model(batch).square().sum()


def harm(grads, kept):
    return float(grads[~kept].sum(0).square().sum())


def test_an_exchange_by_hand():
    """Of g = 1, 1.1, -1.2, 3 the two cheapest add up to 2.1, so 4.41; with -1.2 in the place of 1.1 it is 0.04.

    The pass tries -1.2 first: 1 + 1.1 - 1.2 = 0.9, and without 1, 1.1 or -1.2 that is -0.1, -0.2 and 2.1: 1 comes back.
    Then 3: 1.1 - 1.2 + 3 = 2.9, without 3 again -0.1, which is the lowest.
    """
    grads = torch.tensor([[1.0], [1.1], [-1.2], [3.0]], dtype=torch.float64)
    kept = torch.tensor([False, False, True, True])
    assert rearranged(grads, kept).tolist() == [True, False, False, True]
    assert harm(grads, rearranged(grads, kept)) == pytest.approx(0.01)
    assert kept.tolist() == [False, False, True, True], "the argument stays"


def test_nothing_is_exchanged_for_an_equal():
    for grads in (torch.zeros(4, 2), torch.ones(4, 2)):
        kept = torch.tensor([False, True, False, True])
        assert rearranged(grads, kept).tolist() == kept.tolist()
    assert rearranged(torch.ones(3, 1), torch.ones(3, dtype=torch.bool)).tolist() == [True] * 3
    assert rearranged(torch.ones(3, 1), torch.zeros(3, dtype=torch.bool)).tolist() == [False] * 3


def test_the_count_stays_and_the_harm_never_grows():
    torch.manual_seed(0)
    gains = 0
    for _ in range(20):
        grads = torch.randn(7, 3, dtype=torch.float64)
        order = grads.square().sum(1).argsort()
        kept = torch.ones(7, dtype=torch.bool).index_fill_(0, order[:3], False)
        now = rearranged(grads, kept)
        assert int(now.sum()) == 4
        assert harm(grads, now) <= harm(grads, kept) + 1e-12
        least = min(
            harm(grads, torch.tensor([i not in some for i in range(7)])) for some in itertools.combinations(range(7), 3)
        )
        assert harm(grads, now) >= least - 1e-12
        gains += harm(grads, now) < harm(grads, kept)
    assert gains > 10


def test_columns_go_by_the_squares_of_their_masks_gradients():
    """y = w · x, L = y² and so dL/dm_j = 2 y w_j x_j: of w = 1, 2, 3 and two batches.

    x = 1, 1, 1 gives y = 6 and 12, 24, 36; x = 4, 0, -1 gives y = 1 and 8, 0, -6. Their squares are 208, 576 and 1332,
    so the first goes. Alone, it is exchanged for nothing: 576 and 1332 are higher.
    """
    model = nn.Sequential(nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
    batches = [torch.ones(1, 3), torch.tensor([[4.0, 0.0, -1.0]])]
    report = prune_once(
        model, "retrain_free", batches, loss=squared, pattern="channelx1", target_sparsity=1 / 3, exclude_head=False
    )
    assert model[0].weight.tolist() == [[0.0, 2.0, 3.0]]
    assert report.pattern_verified
    assert report.complete


def test_weights_gradients_and_flags_stay_what_they_were():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 4), nn.Linear(4, 2))
    model[3].bias.requires_grad_(False)
    model[0].weight.requires_grad_(False)  # frozen, and pruned all the same
    model[4].weight.grad = torch.full((2, 4), 7.0)
    model[1].eval()
    flags = [parameter.requires_grad for parameter in model.parameters()]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    prune_once(
        model,
        "retrain_free",
        [torch.randn(3, 6) for _ in range(4)],
        loss=squared,
        pattern="1xchannel",
        target_sparsity=0.5,
    )
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert [parameter.grad is None for parameter in model.parameters()] == [True] * 4 + [False, True]
    assert model[4].weight.grad.eq(7).all()
    assert [module.training for module in model] == [True, False, True, True, True]
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.equal(torch.where(new == 0, new, old), new), "what stays has its value"
    assert sum(int((model[i].weight == 0).sum()) for i in (0, 3)) == 40


@pytest.mark.parametrize("scope", ["global", "local"])
def test_groups_as_in_the_predecessors_test(scope):
    """Columns at 0.5 in one group and pairs of columns at 0.5 in another."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)), nn.Linear(8, 2))
    groups = [{"op_names": ["^[01]$"], "pattern": "channelx1"}, {"op_names": ["^[23]$"], "pattern": "channelx2"}]
    report = prune_once(
        model, "retrain_free", [torch.randn(2, 8) for _ in range(5)], loss=squared, pruning_configs=groups, target_sparsity=0.5,
        pruning_scope=scope,
    )  # fmt: skip
    assert report.pruned_layers == 0.5
    assert report.pattern_verified
    pairs = (model[2].weight == 0).all(0).view(-1, 2)
    assert torch.equal(pairs[:, 0], pairs[:, 1])
    if scope == "local":
        assert [row.sparsity for row in report.layers] == [0.5] * 4


def test_heads_of_a_bert_by_its_own_loss():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, intermediate_size=64))
    text = {"input_ids": torch.arange(3, 21).view(2, 9)}
    batches = [{**text, "labels": torch.tensor(labels)} for labels in ([0, 1], [1, 1], [0, 0])]

    masks = [torch.ones(4, requires_grad=True) for _ in range(2)]
    attentions = [layer.attention.output.dense for layer in model.bert.encoder.layer]
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, m=mask: (args[0] * m.repeat_interleave(8),))
        for layer, mask in zip(attentions, masks, strict=True)
    ]
    model.eval()
    grads = [torch.autograd.grad(model(**batch).loss, masks) for batch in batches]
    for hook in hooks:
        hook.remove()
    fisher = torch.stack([torch.cat(some) for some in grads]).square().sum(0)
    kept = torch.ones(8, dtype=torch.bool).index_fill_(0, fisher.argsort()[:4], False).view(2, 4)
    want = [rearranged(torch.stack(some, 1), mask) for some, mask in zip(zip(*grads, strict=True), kept, strict=True)]

    report = prune_once(model, "retrain_free", batches, pattern="mha", target_sparsity=0.5)
    assert report.pruned_layers == 0.5
    for layer, mask in zip(attentions, want, strict=True):
        assert torch.equal((layer.weight != 0).any(0).view(4, 8).any(1), mask)
    before, after = compact(model, text).parameters
    assert before - after == 4 * (4 * 8 * 32 + 3 * 8)  # four heads of four weights and three biases


@pytest.mark.parametrize(
    ("batches", "loss", "keys", "message"),
    [
        ([], squared, {}, "batches: want at least one batch, got none"),
        (torch.ones(2, 4), squared, {}, "batches: want a list or a loader of batches, got one Tensor"),
        ([torch.ones(2, 5)], squared, {}, "batches: no gradient comes of batch 0: RuntimeError"),
        ([torch.ones(2, 4)], lambda model, batch: model(batch), {}, "batches: no gradient comes of batch 0: RuntimeError"),
        ([torch.ones(2, 4)], None, {}, "loss: the model gives none for this batch"),
        ([torch.full((2, 4), float("inf"))], squared, {}, "0: gradients of its masks are not finite"),
        ([torch.ones(2, 4)], lambda model, batch: model[1](batch).sum(), {}, r"no weight of 0; add .*: \['\^0\$'\]"),
        ([torch.ones(2, 4)], squared, {"pattern": "4x1"}, "pattern: 4x1 has too many units"),
        ([torch.ones(2, 4)], squared, {"pattern": "2:4", "target_sparsity": 0.5}, "pattern: 2:4 has too many units"),
        ([torch.ones(2, 4)], squared, {"end_step": 3}, "end_step: prune_once prunes at once"),
        ([torch.ones(2, 4)], squared, {"criterion_reduce_type": "max"}, "criterion_reduce_type: retrain_free prunes once"),
    ],
)  # fmt: skip
def test_mistakes_leave_the_model_as_it_was(batches, loss, keys, message):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    keys = {"pattern": "channelx1", "target_sparsity": 0.5, **keys}
    with pytest.raises(PruningError, match=message):
        prune_once(model, "retrain_free", batches, loss=loss, **keys)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert [parameter.requires_grad for parameter in model.parameters()] == [True] * 4 + [False, True]
