"""Which layers a config finds, and what it says when it finds none or too many."""

import pytest
from torch import nn

from trisparse import Pruner, PruningConfig, PruningError
from trisparse.prune.layers.modules import find_head

OK = {"start_step": 1, "end_step": 2, "pattern": "1x1"}


def names(model, **keys):
    return [layer.name for layer in Pruner(model, PruningConfig(**OK, **keys)).layers]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(4, 4)
        self.pre_fc = nn.Linear(4, 4)
        self.conv = nn.Conv2d(4, 4, 1)
        self.up = nn.ConvTranspose2d(4, 4, 1)
        self.norm = nn.LayerNorm(4)
        self.embed = nn.Embedding(4, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.fc = nn.Linear(4, 2)
        self.dropout = nn.Dropout()


def test_the_head_is_left_out_by_identity_not_by_name():
    model = Net()
    assert find_head(model) == ("fc", model.fc)
    assert names(model) == ["fc1", "pre_fc", "conv", "up", "attention.in_proj_weight", "attention.out_proj"]
    assert names(model, exclude_head=False)[-1] == "fc"
    model.tail = nn.Tanh()
    assert find_head(model) is None
    assert "fc" in names(model)


def test_names_and_types():
    assert names(Net(), pruning_op_types=["Conv"]) == ["conv", "up"]
    assert names(Net(), op_names=["fc"]) == ["fc1", "pre_fc"]
    assert names(Net(), op_names=["^fc1$", "conv"]) == ["fc1", "conv"]
    assert names(Net(), excluded_op_names=["attention", "conv"]) == ["fc1", "pre_fc", "up"]


def test_no_layer_is_an_error_that_lists_what_there_is():
    with pytest.raises(
        PruningError, match=r"op_names: \['query'\] .* finds no layer for group 0; .* layers are: fc1, pre_fc"
    ):
        names(Net(), op_names=["query"])
    with pytest.raises(PruningError, match="layers are: none; the head is left out, exclude_head: false takes it in"):
        names(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(PruningError, match="layers are: none"):
        names(nn.Sequential(nn.ReLU()))


def test_a_layer_in_two_groups_is_an_error():
    groups = [{"op_names": ["fc1"]}, {"op_names": ["fc"]}]
    with pytest.raises(
        PruningError, match=r"pruning_configs: fc1 is in groups 0 and 1; add '\^fc1\$' to excluded_op_names"
    ):
        Pruner(Net(), PruningConfig(**OK, pruning_configs=groups))


def test_a_parametrized_weight_is_an_error():
    model = Net()
    nn.utils.parametrizations.weight_norm(model.fc1)
    with pytest.raises(PruningError, match="fc1: its weight is no plain parameter"):
        names(model)
