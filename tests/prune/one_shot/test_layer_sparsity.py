"""How much of each layer goes: lists, mappings, and OWL by hand."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from trisparse import PruningError, prune_once
from trisparse.prune.config.config import PruningConfig
from trisparse.prune.one_shot.calibrate import Block
from trisparse.prune.one_shot.layer_sparsity import Owl


class Stack(nn.Module):
    """Two blocks of two layers, and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        make = lambda: nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 20))  # noqa: E731
        self.blocks, self.head = nn.ModuleList([make(), make()]), nn.Linear(20, 2)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


X = torch.randn(50, 20, generator=torch.Generator().manual_seed(1)) * torch.logspace(-1, 1, 20)
PLAIN = {"pattern": "1x1", "target_sparsity": 0.5}


def sparsity(report):
    return [row.sparsity for row in report.layers]


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "dsnot", "magnitude"])
def test_each_layer_gets_its_own(method):
    batches = None if method == "magnitude" else [X]
    report = prune_once(Stack(), method, batches, pattern="1x1", layer_sparsity=[0.25, 0.1, 0.5, 0.75])
    assert sparsity(report) == [0.25, 0.1, 0.5, 0.75]
    found = {"blocks.0": 0.25, r"\.2$": 0.25, "blocks.1.2": 0.75}  # blocks.1.2 has a name of its own
    assert sparsity(prune_once(Stack(), method, batches, **PLAIN, layer_sparsity=found)) == [0.25, 0.25, 0.5, 0.75]


def test_magnitude_takes_blocks_and_leaves_dense_layers_alone():
    model = Stack()
    report = prune_once(model, "magnitude", pattern="4x1", layer_sparsity={"blocks.0": 0.5, "blocks.1": 0})
    assert [row.name for row in report.layers] == ["blocks.0.0", "blocks.0.2"]
    assert sparsity(report) == [0.5, 0.5]
    assert report.pattern_verified
    other = Stack()
    prune_once(other, pattern="4x1", target_sparsity=0.5, pruning_scope="local", op_names=["blocks.0"])
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


@dataclass(eq=False)
class Fake:
    name: str
    view: torch.Tensor
    numel: int


def block(name, *scores):
    weight = torch.tensor([scores]).float()
    return Block(nn.Identity(), [Fake(name, weight, weight.numel())])


def config(**keys):
    return PruningConfig(pruning_type="magnitude", start_step=0, end_step=0, pattern="1x1", **keys).groups[0]


def outliers(m, lam, *blocks):
    owl = Owl(m, lam)
    for one in blocks:
        for layer in one.layers:
            for row in torch.eye(layer.view.shape[1]):
                owl.look(layer, row[None])  # each input has norm 1
    return owl


def test_owl_by_hand():
    # the means are 3, 1 and 2, so what is above 6, 2 and 4 is an outlier: D = 1/4, 0, 1/8, z = 1, 0, 1/2.
    blocks = [block("a", 1, -1, 1, 9), block("b", 1, 1, 1, 1), block("c", 1, 1, 1, 1, 1, 1, 1, 9)]
    # mean z by weights: (4 * 1 + 4 * 0 + 8 * 1/2) / 16 = 1/2; so 0.5 - 0.2 * (z - 1/2)
    found = outliers(2, 0.1, *blocks).sparsities(blocks, config(target_sparsity=0.5))
    assert found == pytest.approx({"a": 0.4, "b": 0.6, "c": 0.5})
    # without c, the mean of z is 1/2 still; of a alone nothing is known
    assert outliers(2, 0.1, *blocks[:2]).sparsities(blocks[:2], config(target_sparsity=0.5)) == pytest.approx(
        {"a": 0.4, "b": 0.6}
    )
    assert outliers(2, 0.1, blocks[0]).sparsities(blocks[:1], config(target_sparsity=0.5)) == {"a": 0.5}
    # layers of a block are one heap of scores: 9 is above 2 * (12 + 4) / 8 = 4, D = 1/8
    both = Block(nn.Identity(), [*blocks[0].layers, *blocks[1].layers])
    found = outliers(2, 0.1, both, blocks[2]).sparsities([both, blocks[2]], config(target_sparsity=0.5))
    assert found == {"a": 0.5, "b": 0.5, "c": 0.5}


def test_owl_says_how_far_it_can_go():
    blocks = [block("a", 1, 1, 1, 9), block("b", 1, 1, 1, 1)]
    owl = outliers(2, 0.2, *blocks)  # 0.9 - 0.4 * (0 - 1/2) = 1.1; 0.08 / (2 * 1/2) is the most
    message = "owl_lambda: 0.2 takes blocks out of 0.0 to 0.98 around target_sparsity 0.9; want at most 0.0799"
    with pytest.raises(PruningError, match=message):
        owl.sparsities(blocks, config(target_sparsity=0.9))


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "dsnot", "magnitude"])
def test_owl_looks_at_the_dense_model_and_meets_the_target(method):
    model, scores = Stack(), []
    for linear in (block[i] for block in model.blocks for i in (0, 2)):
        hook = lambda m, args: scores.append((m.weight.abs() * args[0].norm(dim=0)).flatten())  # noqa: E731
        linear.register_forward_pre_hook(hook)
    model(X)
    heaps = [torch.cat(scores[:2]), torch.cat(scores[2:])]
    first, second = (float((heap > 5 * heap.mean()).float().mean()) for heap in heaps)
    assert first != second
    want = [0.4, 0.4, 0.6, 0.6] if first > second else [0.6, 0.6, 0.4, 0.4]
    report = prune_once(model, method, X.split(25), **PLAIN, layer_sparsity="owl", owl_lambda=0.1)
    assert sparsity(report) == pytest.approx(want, abs=1e-9)
    assert report.pruned_layers == 0.5


@pytest.mark.parametrize(
    ("value", "keys", "message"),
    [
        ([0.5], {}, r"layer_sparsity: want 4 values, one for each layer from blocks.0.0 to blocks.1.2, got 1"),
        ([0.5, 0.5, 1.0, 0.5], {}, r"want a number from 0.0 to 0.98 for blocks.1.0, got 1.0"),
        ([0.5, "a", 0.5, 0.5], {}, r"want a number from 0.0 to 0.98 for blocks.0.2, got 'a'"),
        ([math.nan] * 4, {}, "for blocks.0.0, got nan"),
        ([0, 0, 0, 0], {}, "layer_sparsity: 0 for every layer prunes nothing"),
        ([0.5] * 4, {"target_sparsity": 0.5}, "target_sparsity: layer_sparsity has a value for every layer"),
        ({"block.0": 0.5}, {}, "layer_sparsity: 'block.0' finds none of the pruned layers; did you mean 'blocks.1.0'"),
        ({"head": 0.5}, {}, "layer_sparsity: 'head' finds none of the pruned layers"),
        ({"blocks": 0.5, "0$": 0.6}, {}, r"'blocks' and '0\$' both find blocks.0.0, with 0.5 and 0.6"),
        ({"(": 0.5}, {}, r"layer_sparsity: '\(' is no regular expression"),
        ({0: 0.5}, {}, "layer_sparsity: want names or expressions as keys, got 0"),
        ("Owl", {}, "layer_sparsity: want a list, a mapping or 'owl', got 'Owl'"),
        ([0.5] * 4, {"pattern": "2:4"}, "layer_sparsity: 2:4 says how much of each layer goes"),
        ("owl", {"target_sparsity": 0.5, "owl_m": 0}, "owl_m: want a number above 0, got 0"),
        (
            "owl",
            {"target_sparsity": 0.5, "owl_lambda": 0.5},
            "owl_lambda: want a number above 0 and below 0.5, got 0.5",
        ),
        (None, {"owl_m": 7}, "owl_m: has no effect without layer_sparsity 'owl'"),
    ],
)
def test_misuse(value, keys, message):
    model = Stack()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(PruningError, match=message):
        prune_once(model, "wanda", [X], layer_sparsity=value, **{"pattern": "1x1"} | keys)
    assert all(map(torch.equal, before.values(), model.state_dict().values()))
