"""Calibration sees what goes into weights that no linear layer holds, and says which it did not see."""

import warnings

import pytest
import torch
from torch import nn

from trisparse import PruningError, prune_once
from trisparse.sparse_ops import nm_mask


@pytest.fixture
def moe():
    """A tiny mixture of experts; `tokens` with every expert in reach, or with few."""
    transformers = pytest.importorskip("transformers")

    def make(kind="Mixtral", experts=2, chosen=2):
        torch.manual_seed(0)
        kind = getattr(transformers, f"{kind}ForCausalLM")
        sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
        config = kind.config_class(**sizes, **heads, num_local_experts=experts, num_experts_per_tok=chosen)
        model = kind(config).eval()
        with torch.no_grad():
            for p in model.parameters():
                if p.dim() == 3:
                    p.normal_()
        return model

    return make


@pytest.mark.parametrize("kind", ["Mixtral", "GptOss"])  # [experts, out, in], and [experts, in, out]
def test_wanda_goes_by_the_inputs_of_each_expert(moe, kind):
    model = moe(kind)
    (experts,) = [m for m in model.modules() if hasattr(m, "gate_up_proj")]
    flip = experts.is_transposed
    dense = experts.gate_up_proj.detach().clone()
    before = model.get_experts_implementation()
    batch = {"input_ids": torch.arange(20)[None]}
    inputs = []
    handle = experts.register_forward_pre_hook(lambda module, args: inputs.append(args))
    prune_once(model, "wanda", [batch], pattern="2:4", op_names=["experts"])
    handle.remove()
    assert model.get_experts_implementation() == before
    hidden, index = inputs[-1][:2]
    for number in range(2):
        x = hidden.reshape(-1, 16)[(index.reshape(-1, index.shape[-1]) == number).any(-1)]
        weight = dense[number].t() if flip else dense[number]
        keep = nm_mask(weight.abs() * x.square().sum(0).sqrt(), 2, 4)
        now = experts.gate_up_proj[number].t() if flip else experts.gate_up_proj[number]
        assert (now != 0).equal(keep)
        assert now.equal(weight.where(keep, 0))


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_experts_that_no_token_came_to_are_pruned_by_size_and_named(moe, method):
    model = moe(experts=4, chosen=1)
    (experts,) = [m for m in model.modules() if hasattr(m, "gate_up_proj")]
    dense = experts.gate_up_proj.detach().clone()
    with pytest.warns(
        UserWarning, match="pruned by size alone, since no token of the batches came to them: .*gate_up_proj"
    ):
        report = prune_once(model, method, [{"input_ids": torch.tensor([[3]])}], pattern="2:4")
    assert report.notes[0].startswith("pruned by size alone")
    by_size = [(experts.gate_up_proj[i] != 0).equal(nm_mask(dense[i].abs(), 2, 4)) for i in range(4)]
    assert sum(by_size) == 3
    assert report.pattern_verified


def test_a_dense_model_warns_of_nothing(moe):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        prune_once(moe(), "wanda", [{"input_ids": torch.arange(20)[None]}], pattern="2:4")


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x, _ = self.attention(x, x, x, need_weights=False)
        return self.head(self.lstm(x)[0])


def test_the_inner_projection_of_attention_is_seen_and_a_recurrent_layer_is_left_out():
    torch.manual_seed(0)
    model, x = Attends(), torch.randn(2, 5, 8)
    dense = model.attention.in_proj_weight.detach().clone()
    report = prune_once(model, "wanda", [(x,)], pattern="2:4")
    assert [row.name for row in report.layers] == ["attention.in_proj_weight", "attention.out_proj"]
    keep = nm_mask(dense.abs() * x.flatten(0, 1).square().sum(0).sqrt(), 2, 4)
    assert (model.attention.in_proj_weight != 0).equal(keep)
    assert "lstm.weight_ih_l0, lstm.weight_hh_l0, which multiplies where calibration can't look" in report.notes[0]
    with pytest.raises(PruningError, match="batches: they show no input to lstm.weight_ih_l0"):
        prune_once(Attends(), "wanda", [(x,)], pattern="2:4", op_names=["lstm"])


class Reads(nn.Module):
    """Model code that multiplies by a layer's weight, where another calls the layer; padding does not count either way."""

    def __init__(self, by_hand):
        super().__init__()
        self.by_hand = by_hand
        self.inner, self.head = nn.Linear(8, 8, bias=False), nn.Linear(8, 2)

    def forward(self, x, attention_mask):
        x = nn.functional.linear(x, self.inner.weight) if self.by_hand else self.inner(x)
        return self.head(x)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_weight_that_other_code_multiplies_by_is_seen_as_if_its_layer_were_called(method):
    weights = []
    for by_hand in (False, True):
        torch.manual_seed(0)
        model = Reads(by_hand)
        mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
        batch = {"x": torch.randn(2, 4, 8) * (1 + 9 * (1 - mask[..., None])), "attention_mask": mask}
        prune_once(model, method, [batch], pattern="2:4")
        weights.append(model.inner.weight.detach())
    assert weights[0].equal(weights[1])
