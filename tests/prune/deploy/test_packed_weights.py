"""Model code that reads a packed layer's weight gives what it gave, or the layers are dense again and the report says so."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from trisparse import compress, decompress, prune_once
from trisparse.prune.deploy.layer_spec import describe
from trisparse.sparse_ops import Linear24, LinearBlocks

T = pytest.importorskip("transformers")
SPEECH = {
    "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 128, "conv_dim": (16, 16),
    "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
IDS = {"input_ids": torch.arange(3, 12)[None]}


class Own(nn.Module):
    """Multiplies by weights itself, transposed, sliced, tied, as its dtype says."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(64, 64), nn.Linear(64, 64, bias=False), nn.Linear(64, 64)

    def forward(self, x):
        x = functional.linear(x.to(self.a.weight.dtype), self.a.weight, self.a.bias).tanh()
        x = x @ self.b.weight.T + x @ self.b.weight.data[:, :64]
        return functional.linear(x, self.head.weight[: self.head.out_features // 2]) / self.a.weight.norm()


MODELS = {
    "own": (Own, (torch.linspace(-1, 1, 128).view(2, 64),)),
    "torch's encoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2),
        (torch.linspace(-1, 1, 320).view(1, 5, 64),),
    ),
    "mamba": (
        lambda: T.MambaForCausalLM(
            T.MambaConfig(vocab_size=32, hidden_size=64, num_hidden_layers=1, state_size=8, time_step_rank=64)
        ),
        IDS,
    ),
    "wavlm": (lambda: T.WavLMModel(T.WavLMConfig(**SPEECH)), {"input_values": torch.linspace(-1, 1, 800)[None]}),
    "t5": (
        lambda: T.T5EncoderModel(T.T5Config(vocab_size=32, d_model=64, d_kv=16, d_ff=128, num_layers=1, num_heads=4)),
        IDS,
    ),
}  # fmt: skip


def run(model, example):
    result = model(**example) if isinstance(example, dict) else model(*example)
    return result if isinstance(result, torch.Tensor) else next(iter(result.values()))


@pytest.mark.parametrize("pattern", ["2:4", "4x1"])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_stay(name, pattern):
    make, example = MODELS[name]
    model = make().eval()
    target = {} if pattern == "2:4" else {"target_sparsity": 0.7}
    prune_once(model, pattern=pattern, pruning_op_types=["Linear"], exclude_head=False, **target)
    with torch.no_grad():
        want = run(model, example)
        _, report = compress(model, prefer="memory", measure=False, example=example)
        assert report.verified
        assert "; outputs equal" in report.summary()
        assert sum(isinstance(m, (Linear24, LinearBlocks)) for m in model.modules()) >= 2
        torch.testing.assert_close(run(model, example), want)


class Strict(nn.Module):
    """Does not do the same once a layer is packed."""

    def __init__(self, otherwise):
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.otherwise = otherwise

    def forward(self, x):
        x = self.second(self.first(x))
        return x if type(self.first) is nn.Linear else self.otherwise(x)


def refuse(_):
    raise TypeError("want nn.Linear")


@pytest.mark.parametrize(
    ("otherwise", "reason"), [(lambda x: x + 1, "its outputs differ by 1"), (refuse, "TypeError: want nn.Linear")]
)
def test_where_outputs_change_all_layers_are_dense_again(otherwise, reason):
    model, x = Strict(otherwise), torch.linspace(-1, 1, 128).view(2, 64)
    prune_once(model, pattern="2:4", exclude_head=False)
    want, before = model(x), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _, report = compress(model, prefer="memory", measure=False, example=(x,))
    assert report.verified
    assert f"no layer is packed: the model does not do the same with packed layers ({reason}" in str(report)
    assert "0 of 2 layers packed" in report.summary()
    assert {(row.format, row.reason) for row in report.layers} == {("dense", "packed, the model's outputs change")}
    assert report.bytes_after == report.bytes_before
    assert torch.equal(model(x), want)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert describe(model)["layers"] == {}


class Gpt(nn.Module):
    """Transformers' own linear layers, with channels gone before."""

    def __init__(self):
        super().__init__()
        config = T.GPT2Config(vocab_size=32, n_embd=64, n_layer=1, n_head=4, bos_token_id=1, eos_token_id=1)
        self.inner = T.GPT2Model(config)

    def forward(self, ids):
        x = self.inner(input_ids=ids).last_hidden_state
        return x if any(isinstance(m, T.pytorch_utils.Conv1D) for m in self.modules()) else x + 1


def test_channels_that_went_stay_away():
    model, ids = Gpt().eval(), torch.arange(6)[None]
    prune_once(model, pattern="2:4", pruning_op_types=["Linear"], exclude_head=False)
    model.inner.h[0].mlp.c_fc.weight.data[:, :128] = 0
    with torch.no_grad():
        want = model(ids)
        _, report = compress(model, prefer="memory", measure=False, example=(ids,))
        assert "no layer is packed" in report.note
        torch.testing.assert_close(model(ids), want)
        assert model.inner.h[0].mlp.c_fc.weight.shape == (64, 128)
        assert describe(model)["layers"]["inner.h.0.mlp.c_fc"]["full_shape"] == [256, 64]
        torch.testing.assert_close(decompress(model)(ids), want)
    assert model.inner.h[0].mlp.c_fc.weight.shape == (64, 256)


def test_what_cannot_be_compared_is_said():
    model = Own()
    prune_once(model, pattern="2:4", exclude_head=False)
    _, report = compress(model, prefer="memory", measure=False)
    assert not report.verified
    assert report.summary().endswith("; outputs not compared, give example=…")
    decompress(model)
    _, report = compress(model, prefer="memory", measure=False, example=(torch.zeros(2, 3),))
    assert not report.verified
    assert "outputs not compared: example: the model does not run on it (RuntimeError: " in report.summary()
    assert isinstance(model.a, Linear24)


class Noisy(Own):
    def forward(self, x):
        return super().forward(x) + torch.rand(())


def test_random_numbers_are_the_same_each_time_and_the_callers_stay():
    model, x = Noisy(), torch.linspace(-1, 1, 128).view(2, 64)
    prune_once(model, pattern="2:4", exclude_head=False)
    state = torch.get_rng_state()
    _, report = compress(model, prefer="memory", measure=False, example=(x,))
    assert report.verified
    assert isinstance(model.a, Linear24)
    assert torch.equal(torch.get_rng_state(), state)
