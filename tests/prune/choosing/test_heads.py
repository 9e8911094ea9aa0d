"""Pattern `mha`: heads of attention, by hand on small attentions."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from trisparse import (
    MaskedAdamW,
    Pruner,
    PruningConfig,
    PruningError,
    prune_once,
)  # fmt: skip


class Attention(nn.Module):
    """As in Llama: `heads` queries, `keys` keys and values, each `size` wide."""

    def __init__(self, width=8, heads=4, keys=4, size=2, bias=True):
        super().__init__()
        self.head_dim, self.groups = size, heads // keys
        self.q_proj = nn.Linear(width, heads * size, bias)
        self.k_proj = nn.Linear(width, keys * size, bias)
        self.v_proj = nn.Linear(width, keys * size, bias)
        self.o_proj = nn.Linear(heads * size, width, bias)

    def forward(self, x):
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.head_dim)).transpose(-2, -3)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = (t.repeat_interleave(self.groups, -3) for t in (k, v))
        return self.o_proj(functional.scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2))

    def kept(self):
        """Heads of keys with a weight that is not zero, seen from each layer."""
        rows = [self.q_proj.weight, self.k_proj.weight, self.v_proj.weight, self.o_proj.weight.t()]
        count = len(self.k_proj.weight) // self.head_dim
        return [(w.reshape(count, -1) != 0).any(1).tolist() for w in rows]


def config(**keys):
    return PruningConfig(**{"pattern": "mha", "target_sparsity": 0.5, "start_step": 1, "end_step": 1, **keys})


def set_weights(attention, **rows):
    with torch.no_grad():
        for name, values in rows.items():
            getattr(attention, f"{name}_proj").weight.copy_(torch.tensor(values))


@pytest.mark.parametrize(("reduce", "kept"), [("mean", [False, True]), ("sum", [False, True]), ("max", [True, False])])
def test_two_heads_by_hand(reduce, kept):
    """Sums of |W| of head 0: 1.5 + 4.5 + 2 + 2, of head 1: 6 + 2 + 4 + 4; the largest are 4 and 3."""
    model = Attention(width=2, heads=2, keys=2, size=1)
    set_weights(
        model, q=[[1.0, -0.5], [3.0, 3.0]], k=[[4.0, 0.5], [1.0, 1.0]], v=[[1.0, 1.0], [2.0, -2.0]],
        o=[[1.0, 2.0], [-1.0, 2.0]],
    )  # fmt: skip
    before = model.o_proj.bias.clone()
    report = prune_once(model, pattern="mha", target_sparsity=0.5, criterion_reduce_type=reduce)
    assert model.kept() == [kept] * 4
    assert report.pruned_layers == 0.5
    assert report.pattern_verified
    for layer in (model.q_proj, model.k_proj, model.v_proj):
        assert (layer.bias != 0).tolist() == kept
    assert torch.equal(model.o_proj.bias, before)


def test_the_mean_is_over_all_weights_of_a_group_of_heads():
    """Two queries a key, one input. Of six weights each, head 0 of the keys has 1 + 1, 2, 2 and 1 + 1, head 1 has 3 + 3,
    0, 0 and 2 + 2: their means are 8/6 and 10/6, so head 0 goes; of the means of the layers, 6/4 and 5/4, head 1 would.
    """
    model = Attention(width=1, heads=4, keys=2, size=1)
    set_weights(model, q=[[1.0], [1.0], [3.0], [3.0]], k=[[2.0], [0.0]], v=[[2.0], [0.0]], o=[[1.0, 1.0, 2.0, 2.0]])
    report = prune_once(model, pattern="mha", target_sparsity=0.5)
    assert model.q_proj.weight.flatten().tolist() == [0, 0, 3, 3]
    assert model.o_proj.weight.tolist() == [[0, 0, 2, 2]]
    assert model.k_proj.weight.tolist() == model.v_proj.weight.tolist() == [[0], [0]]
    assert sum(row.zeros - row.extra_zeros for row in report.layers) == 6


def test_by_gradient_and_by_the_mask_of_what_a_head_gives():
    """|W·G| sums to 8 and 7 over the heads; the mask's gradient, Σ W·G of columns that read, is 1 - 1 and 2 + 1."""
    for kind, kept in (("snip", [True, False]), ("block_mask", [False, True])):
        model = Attention(width=2, heads=2, keys=2, size=1, bias=False)
        for layer in model.children():
            nn.init.ones_(layer.weight)
            layer.weight.grad = torch.full((2, 2), 1.0)
        model.o_proj.weight.grad = torch.tensor([[1.0, 2.0], [-1.0, -1.0]])
        model.q_proj.weight.grad[1] = 0.0
        pruner = Pruner(model, config(pruning_type=kind))
        pruner.observe()
        pruner.step()
        assert model.kept() == [kept] * 4


def test_the_mask_gradient_of_a_head_is_what_autograd_gives():
    torch.manual_seed(0)
    model, x = Attention(), torch.randn(3, 5, 8)
    mask = torch.ones(4, requires_grad=True)
    hook = model.o_proj.register_forward_pre_hook(lambda _, args: (args[0] * mask.repeat_interleave(2),))
    model(x).square().sum().backward()
    hook.remove()
    pruner = Pruner(model, config(pruning_type="block_mask"))
    pruner.observe()
    assert torch.allclose(pruner.groups[0].scoring.scores[3][:, 0], mask.grad.abs(), rtol=1e-4)


@pytest.mark.parametrize("target", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_counts_are_exact_and_masks_nest(train, scope, target):
    torch.manual_seed(0)
    model = nn.Sequential(Attention(), Attention(), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    pruner = Pruner(model, config(target_sparsity=target, pruning_scope=scope, end_step=9, pruning_frequency=2))
    gone = {}

    def look(step):
        now = pruner.masks()
        assert all((now[name] <= gone.get(name, now[name])).all() for name in now)
        gone.update({name: mask.clone() for name, mask in now.items()})
        for attention in model[:2]:
            heads = attention.kept()
            assert heads == [heads[0]] * 4
            assert any(heads[0])

    with pruner.attach(optimizer):
        run(model, optimizer, 11, look)
    counts = [4 - sum(attention.kept()[0]) for attention in model[:2]]
    assert sum(counts) == 8 * target
    assert scope == "global" or counts[0] == counts[1]
    report = pruner.report()
    assert report.complete
    assert report.pattern_verified
    assert report.pruned_layers == target
    assert [row.pattern for row in report.layers] == ["mha"] * 8


def run(model, optimizer, steps, after=None, first=0):
    for step in range(first, first + steps):
        x = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(step))
        (model(x) - 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if after:
            after(step + 1)


def test_one_head_stays_however_cheap_its_attention_is():
    model = nn.Sequential(Attention(), Attention())
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter.mul_(1e-3)
    prune_once(model, pattern="mha", target_sparsity=0.5, max_sparsity_ratio_per_op=1 - 1e-12)
    assert [sum(attention.kept()[0]) for attention in model] == [1, 3]
    ratio = {"min_sparsity_ratio_per_op": 0.25, "max_sparsity_ratio_per_op": 0.5}
    model = nn.Sequential(Attention(), Attention(), Attention())
    with torch.no_grad():
        for scale, attention in zip((1e-3, 1.0, 1e3), model, strict=True):
            for parameter in attention.parameters():
                parameter.mul_(scale)
    prune_once(model, pattern="mha", target_sparsity=5 / 12, **ratio)
    assert [4 - sum(attention.kept()[0]) for attention in model] == [2, 2, 1]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_half_of_the_heads_go_where_all_are_equal(value):
    """Of four heads two, where truncation would take one and ties all."""
    model = Attention(bias=False)
    for parameter in model.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.full_like(parameter, value)
    pruner = Pruner(model, config())
    pruner.observe()
    pruner.step()
    assert model.kept() == [[False, False, True, True]] * 4


def test_a_resumed_run_goes_on_bit_for_bit():
    torch.manual_seed(0)
    whole = nn.Sequential(Attention(), Attention(keys=2))
    half = copy.deepcopy(whole)
    keys = {"end_step": 9, "pruning_frequency": 4}

    def train(model, steps, first=0, state=None):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        pruner = Pruner(model, config(**keys))
        if state:
            pruner.load_state_dict(state)
        with pruner.attach(optimizer):
            run(model, optimizer, steps, first=first)
        return pruner

    train(whole, 11)
    train(half, 5, 6, copy.deepcopy(train(half, 6).state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), half.parameters(), strict=True))
    assert whole[0].kept() != [[True] * 4] * 4


def test_a_lock_holds_heads_that_are_gone_from_all_layers():
    model = Attention()
    with torch.no_grad():
        model.q_proj.weight[:2] = 0  # of head 0 alone
    prune_once(model, pattern="mha", target_sparsity=0.25, op_names=["_proj"])
    gone = model.kept()
    pruner = Pruner(model, PruningConfig(pattern="mha", pruning_type="pattern_lock"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with pruner.attach(optimizer):
        run(model, optimizer, 3)
    assert model.kept()[1:] == gone[1:]
    assert sum(gone[1]) == 3

    model = Attention()
    with torch.no_grad():
        model.q_proj.weight[:2] = 0
    lock = Pruner(model, PruningConfig(pattern="mha", pruning_type="pattern_lock"))
    lock.start()
    assert all(mask.all() for mask in lock.masks().values())


def test_initial_zeros_count():
    model = Attention()
    prune_once(model, pattern="mha", target_sparsity=0.25)
    gone = model.kept()[0].index(False)
    pruner = Pruner(model, config(lock_init_sparsity=True, start_step=3, end_step=5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with pruner.attach(optimizer):
        run(model, optimizer, 6)
    assert [heads[gone] for heads in model.kept()] == [False] * 4
    assert pruner.report().pruned_layers == 0.5


def test_an_attention_that_no_gradient_reaches_is_left_out_whole():
    class Unread(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.partly, self.end = Attention(), Attention(), Attention(), nn.Linear(8, 2)

        def forward(self, x):
            return self.end(self.used(x) + self.partly.o_proj(self.partly.v_proj(x)))

    model = Unread()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(model, config(end_step=3))
    with pruner.attach(optimizer):
        run(model, optimizer, 4)
    assert model.unused.kept() == model.partly.kept() == [[True] * 4] * 4
    assert sum(model.used.kept()[0]) == 2
    assert "left out, since no gradient reached them: unused.q_proj" in str(pruner.report())


def test_masked_adamw_prunes_as_adamw_does():
    found = []
    for kind in (torch.optim.AdamW, MaskedAdamW):
        torch.manual_seed(0)
        model = nn.Sequential(Attention(), Attention(keys=2), nn.Linear(8, 2))
        optimizer = kind(model.parameters(), lr=1e-2)
        with Pruner(model, config(end_step=5)).attach(optimizer):
            run(model, optimizer, 7)
        found.append(model)
    for (name, mine), theirs in zip(found[0].named_parameters(), found[1].parameters(), strict=True):
        assert torch.equal(mine == 0, theirs == 0)
        if not name.endswith("k_proj.bias"):  # its gradient is rounding alone, as softmax forgets what all keys share
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    kept = found[0][0].kept()[0]
    assert (found[0][0].v_proj.bias != 0).tolist() == [flag for flag in kept for _ in range(2)]


def test_layers_multiply_what_is_kept():
    torch.manual_seed(0)
    models = [nn.Sequential(Attention(16, 4, 2, 4), nn.Linear(16, 2))]
    models.append(copy.deepcopy(models[0]))
    for model, mode in zip(models, ("off", "on"), strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        pruner = Pruner(model, config(end_step=3), sparse_training=mode)
        with pruner.attach(optimizer):
            for step in range(5):
                x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(step))
                (model(x) - 1).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
            assert len(pruner.sparse_layers) == (4 if mode == "on" else 0)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert models[0][0].kept() == models[1][0].kept()


def test_a_bias_that_another_layer_has_too_stays():
    model = Attention()
    model.q_proj.bias = model.k_proj.bias
    before = model.k_proj.bias.clone()
    prune_once(model, pattern="mha", target_sparsity=0.5)
    assert torch.equal(model.k_proj.bias, before)
    assert int((model.v_proj.bias == 0).sum()) == 4


def test_models_without_an_attention_that_is_known():
    with pytest.raises(PruningError, match="pattern: mha knows no attention in this model; it knows"):
        Pruner(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), config())
    odd = Attention()
    odd.head_dim = 3  # rows that it does not divide
    with pytest.raises(PruningError, match="pattern: mha knows no attention"):
        Pruner(odd, config())


def test_attentions_with_a_weight_in_common():
    model = nn.Sequential(Attention(), Attention())
    model[1].k_proj.weight = model[0].k_proj.weight
    with pytest.raises(PruningError, match="pattern: mha prunes whole heads, and 1 has 1.k_proj in common with 0"):
        Pruner(model, config())
    model.append(Attention())
    assert len(Pruner(model, config(excluded_op_names=[r"^0\.k_proj$", r"^1\.k_proj$"])).layers) == 4
    twice = Attention()
    assert len(Pruner(nn.Sequential(twice, twice), config()).layers) == 4
