"""Activations that packed layers apply: the same outputs, everywhere a model may go afterwards."""

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers import AutoModel, BertConfig, BertModel, DistilBertConfig, DistilBertModel, GemmaConfig, GemmaModel

import trisparse
from trisparse import compress, compress_like, decompress, describe, prune_once
from trisparse.kernels.cpu.launch import runs_packed
from trisparse.prune.costs.fold_activations import Folded, fold_activations, unfold_activations
from trisparse.prune.deploy.formats import formats_of, pack_layer
from trisparse.prune.layers.modules import replace_module
from trisparse.sparse_ops import LinearBlocks

pytestmark = pytest.mark.skipif(not runs_packed(torch.float32), reason="needs a C++ compiler")

_SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 1}
_MODELS = {
    "gelu": lambda: BertModel(BertConfig(vocab_size=50, hidden_act="gelu", **_SIZES)),
    "gelu_tanh": lambda: BertModel(BertConfig(vocab_size=50, hidden_act="gelu_new", **_SIZES)),
    "relu": lambda: DistilBertModel(
        DistilBertConfig(vocab_size=50, dim=64, hidden_dim=128, n_heads=4, n_layers=1, activation="relu")
    ),
    "gate": lambda: GemmaModel(GemmaConfig(vocab_size=50, head_dim=16, num_key_value_heads=4, **_SIZES)),
}


class Mlp(nn.Module):
    """A layer and an activation, put together as `how` says."""

    def __init__(self, how: str, act: nn.Module | None = None) -> None:
        super().__init__()
        self.how = how
        self.dense, self.act = nn.Linear(32, 64), act or nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "twice":
            return self.act(self.dense(x)) + self.act(self.dense(-x))
        if self.how == "again":
            return self.act(self.dense(x)) + self.dense(-x)
        y = self.dense(x)
        if self.how == "branch" and y.sum() > 1e9:
            return y
        if self.how == "sets":
            self.last = y
        return self.act(y) + (y if self.how == "read" else 0)


def _packed(model: nn.Module) -> nn.Module:
    """All layers as 4x1, whatever is faster."""
    prune_once(model, pattern="4x1", target_sparsity=0.8, exclude_head=False)
    model.eval()
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear:
            (form,) = (form for form in formats_of(layer.weight) if form.block == (4, 1))
            replace_module(model, name, pack_layer(layer, form))
    return model


@pytest.fixture
def always_packed(monkeypatch):
    """`compress` finds packed layers faster, however small they are."""
    times = {"dense_ms": 2.0, "packed_ms": 1.0, "equal": True}
    monkeypatch.setattr("trisparse.prune.deploy.choose_format.time_pair", lambda *_: times)
    monkeypatch.setattr("trisparse.prune.deploy.choose_format._expected", lambda *_: {1: 2.0, 4096: 2.0})


@pytest.mark.parametrize("kind", _MODELS)
@pytest.mark.parametrize("pattern", ["4x1", "2:4"])
def test_outputs_stay_and_checkpoints_remember(kind, pattern, tmp_path, always_packed):
    torch.manual_seed(0)
    model = _MODELS[kind]().eval()
    prune_once(model, pattern=pattern, target_sparsity=0.5 if pattern == "2:4" else 0.8)
    ids = torch.randint(50, (2, 7))
    with torch.no_grad():
        want = model(input_ids=ids)[0]
        packed, report = compress(copy.deepcopy(model), cache=tmp_path / "times")
        (folded,) = (m for m in packed.modules() if isinstance(m, Folded))
        (layer,) = (m for m in packed.modules() if getattr(m, "activation", "none") in ("relu", "gelu", "gelu_tanh"))
        assert layer.activation == ("gelu_tanh" if kind == "gate" else kind)
        assert f"activation={layer.activation}" in repr(layer)
        assert sum("that follows" in row.reason for row in report.layers) == 1
        folded.activation.register_forward_hook(lambda *_: pytest.fail("the activation ran"))
        torch.testing.assert_close(packed(input_ids=ids)[0], want, rtol=1e-4, atol=1e-5)
        folded.activation._forward_hooks.clear()

        packed.save_pretrained(tmp_path / "model")
        like = compress_like(copy.deepcopy(model), describe(packed)).eval()
        like.load_state_dict(packed.state_dict())
        loaded = (
            trisparse.from_pretrained(tmp_path / "model").eval(),
            AutoModel.from_pretrained(tmp_path / "model").eval(),
        )
        for other in (*loaded, like, copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
            assert sum(isinstance(m, Folded) for m in other.modules()) == 1
            torch.testing.assert_close(other(input_ids=ids)[0], want, rtol=1e-4, atol=1e-5)
            assert describe(other) == describe(packed)
        dense = decompress(packed)
        assert not any(isinstance(m, Folded) for m in dense.modules())
        torch.testing.assert_close(dense(input_ids=ids)[0], want, rtol=1e-4, atol=1e-5)
        assert dense.state_dict().keys() == model.state_dict().keys()


def test_memory_leaves_modules_as_they_are(always_packed):
    model = _MODELS["gelu"]().eval()
    prune_once(model, pattern="4x1", target_sparsity=0.8)
    packed, report = compress(model, prefer="memory")
    assert report.verified
    assert not any(isinstance(m, Folded) for m in packed.modules())


@pytest.mark.parametrize(
    ("how", "act", "want"),
    [
        ("plain", nn.GELU(), ["dense"]),
        ("plain", nn.ReLU(inplace=True), ["dense"]),
        ("sets", nn.GELU(), ["dense"]),
        ("plain", nn.SiLU(), []),
        ("plain", nn.PReLU(init=0.0), []),  # has a parameter, whatever it is now
        ("twice", nn.GELU(), []),
        ("again", nn.GELU(), []),
        ("read", nn.GELU(), []),  # somebody else reads what is not activated
        ("branch", nn.GELU(), []),
    ],
)
def test_only_where_nothing_else_reads_the_outputs(how, act, want):
    model = _packed(Mlp(how, act))
    x = torch.randn(5, 32)
    with torch.no_grad():
        before = model(x)
        assert fold_activations(model) == want
        assert type(model.__dict__.get("last", x)) is torch.Tensor  # following a forward leaves nothing behind
        torch.testing.assert_close(model(x), before)


@pytest.mark.parametrize("where", ["dense", "act"])
def test_not_past_a_hook(where):
    model = _packed(Mlp("plain"))
    model.get_submodule(where).register_forward_hook(lambda *_: None)
    assert fold_activations(model) == []


def test_not_with_a_shared_layer():
    first, second = Mlp("plain"), Mlp("plain")
    second.dense = first.dense
    assert fold_activations(_packed(nn.ModuleList([first, second]))) == []


def test_one_activation_in_two_places():
    act = nn.GELU()
    model = _packed(nn.ModuleList([Mlp("plain", act), Mlp("plain", act)]))
    assert fold_activations(model) == ["0.dense", "1.dense"]
    unfold_activations(model)
    assert model[0].act is act
    assert model[1].act is act


def test_a_replaced_layer_brings_the_activation_back():
    model = _packed(Mlp("plain"))
    x = torch.randn(3, 32)
    want = model(x)
    fold_activations(model)
    model.dense = model.dense.to_linear()
    torch.testing.assert_close(model(x), want)


def test_gradients_compile_and_bfloat16():
    model = _packed(Mlp("plain"))
    x = torch.randn(3, 32, requires_grad=True)
    (want,) = torch.autograd.grad(model(x).sum(), x)
    plain = copy.deepcopy(model)
    fold_activations(model)
    (grad,) = torch.autograd.grad(model(x).sum(), x)
    torch.testing.assert_close(grad, want)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="eager")(x), plain(x))
        half = x.to(torch.bfloat16)
        torch.testing.assert_close(model.bfloat16()(half), plain.bfloat16()(half), rtol=2e-2, atol=1e-2)


def test_folding_that_changes_outputs_is_taken_back(monkeypatch, always_packed):
    """A module that another one asks for what the layer gives, past its own forward."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = Mlp("plain")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mlp(x) + self.mlp.dense(x)

    model = Reader().eval()
    prune_once(model, pattern="4x1", target_sparsity=0.8, exclude_head=False)
    x = torch.randn(3, 32)
    want = model(x)
    packed, report = compress(model, example=(x,))
    assert (type(packed.mlp.dense), type(packed.mlp.act)) == (LinearBlocks, nn.GELU)
    assert "activations stay" in str(report)
    torch.testing.assert_close(packed(x), want)


def test_an_unknown_activation():
    with pytest.raises(ValueError, match="activation: want none, relu, gelu, gelu_tanh, got 'silu'"):
        LinearBlocks(8, 8).activate("silu")
