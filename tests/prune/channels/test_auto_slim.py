"""A config for the second layers of feed-forward blocks and for heads, from the model alone, and what it removes."""

import pytest
import torch
from torch import nn

from trisparse import Pruner, PruningError, compact
from trisparse.prune.channels.auto_slim import auto_slim_config

T = pytest.importorskip("transformers")
SIZES = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
WINDOW = {"start_step": 1, "end_step": 4}
TEXT = {"input_ids": torch.arange(3, 21).view(2, 9)}


def bert():
    torch.manual_seed(0)
    return T.BertForSequenceClassification(T.BertConfig(**SIZES))


def test_the_groups_of_a_bert():
    config = auto_slim_config(bert(), 0.4, 0.5, **WINDOW, pruning_scope="local")
    columns, heads = config.groups
    assert [str(group.pattern) for group in config.groups] == ["channelx1", "mha"]
    assert [group.target_sparsity for group in config.groups] == [0.4, 0.5]
    assert [group.pruning_scope for group in config.groups] == ["local", "local"]
    assert columns.op_names == tuple(rf"^bert\.encoder\.layer\.{i}\.output\.dense$" for i in (0, 1))
    assert heads.op_names == (".*",)
    assert [str(g.pattern) for g in auto_slim_config(bert(), ffn2_sparsity=0.4, **WINDOW).groups] == ["channelx1"]
    assert [str(g.pattern) for g in auto_slim_config(bert(), mha_sparsity=0.5, **WINDOW).groups] == ["mha"]


def test_after_training_half_of_channels_and_heads_are_removed():
    """As neural-compressor's own test has it: both at 0.5, each layer by itself, then slimmed."""
    model = bert()
    config = auto_slim_config(model, ffn2_sparsity=0.5, mha_sparsity=0.5, pruning_scope="local", **WINDOW)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with Pruner(model, config).attach(optimizer):
        for _ in range(5):
            model(**TEXT, labels=torch.tensor([0, 1])).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    want = model(**TEXT).logits
    report = compact(model, TEXT, multiple=1)
    kept = {chain.consumer: (chain.units, chain.kept) for chain in report.chains}
    for i in range(2):
        assert kept[f"bert.encoder.layer.{i}.output.dense"] == (64, 32)
        assert kept[f"bert.encoder.layer.{i}.attention.output.dense"] == (4, 2)
    assert torch.allclose(model(**TEXT).logits, want, atol=1e-6)


def test_layers_without_names_are_found_by_running_the_model():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three, self.end = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x):
            hidden = self.three(self.two(self.one(x).relu()).tanh()) + x
            return self.end(hidden)

    config = auto_slim_config(Block(), 0.5, example=(torch.randn(2, 8),), **WINDOW)
    assert config.groups[0].op_names == (r"^two$", r"^three$")


@pytest.mark.parametrize(
    ("sparsities", "keys", "message"),
    [
        ((0.0, 0.0), {}, "ffn2_sparsity, mha_sparsity: both are 0"),
        ((1.0, 0.0), {}, "ffn2_sparsity: want a number from 0 up to but not 1, got 1.0"),
        ((0.5, True), {}, "mha_sparsity: want a number from 0 up to but not 1, got True"),
        ((0.5, 0.5), {"pattern": "4x1"}, "pattern: auto_slim_config chooses it"),
        ((0.5, 0.5), {"pruning_type": "snip_progressive"}, r"pruning_configs\[1\].pruning_type: .* can't cut a head"),
    ],
)
def test_mistakes(sparsities, keys, message):
    with pytest.raises(PruningError, match=message):
        auto_slim_config(bert(), *sparsities, **WINDOW, **keys)


def test_models_without_such_layers():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(
        PruningError, match=r"ffn2_sparsity: the model has no linear layer .* since no example is given"
    ):
        auto_slim_config(model, 0.5, **WINDOW)
    with pytest.raises(
        PruningError, match=r"ffn2_sparsity: the model has no linear layer that alone reads what another makes$"
    ):
        auto_slim_config(model, 0.5, example=(torch.ones(1, 4),), **WINDOW)
    with pytest.raises(PruningError, match="mha_sparsity: the model has no attention that is known"):
        auto_slim_config(model, 0.0, 0.5, **WINDOW)
