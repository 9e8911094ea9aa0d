"""What keeps layers and channels as they are: hooks, replaced forwards, computed weights, subclasses, second names."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from trisparse import (
    Pruner,
    PruningConfig,
    PruningError,
    compact,
    compress,
    decompress,
    prune_once,
    save_pretrained,
)

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def hook(name, index):
    """Registers a hook that changes what passes; of backward ones it only matters that they are there."""

    def change(model):
        register = getattr(model[index], f"register_{name}hook")
        register({"forward_": lambda m, x, y: y.flip(-1), "forward_pre_": lambda m, x: (x[0] + 1,)}.get(name, print))

    return change


def replace_forward(index):
    def change(model):
        old = model[index].forward
        model[index].forward = lambda x: old(x) + 1

    return change


def prune_rows(model):
    prune.ln_structured(model[0], "weight", 0.5, 2, 0)


def prune_bias(model):
    prune.l1_unstructured(model[3], "bias", 0.5)


def make_subclass(model):
    model[0].__class__ = Doubled


def normalize(model):
    model[0] = nn.utils.weight_norm(model[0])
    model[0].weight_v.data[:32] = 1.0
    model[0].weight_g.data[:32] = 0


def parametrize(model):
    nn.utils.parametrize.register_parametrization(model[0], "weight", nn.Identity())


def forget_hooks(model):
    """Only the computed weight is left, as after loading a pickle of it."""
    prune_rows(model)
    model[0]._forward_pre_hooks.clear()


OBSTACLES = {
    "forward hook": (hook("forward_", 0), "0: it has hooks"),
    "pre-hook": (hook("forward_pre_", 3), "3: it has hooks"),
    "backward hook": (hook("full_backward_", 0), "0: it has hooks"),
    "backward pre-hook": (hook("full_backward_pre_", 0), "0: it has hooks"),
    "hook on the activation": (hook("forward_", 1), "1: it has hooks"),
    "hook between": (hook("forward_", 2), "2: it has hooks"),
    "forward": (replace_forward(0), "0: its forward was replaced"),
    "forward of the activation": (replace_forward(1), "1: its forward was replaced"),
    "subclass": (make_subclass, "0: it is a Doubled, not nn.Linear itself"),
    "torch prune": (prune_rows, "0: it has hooks"),
    "torch prune of a bias": (prune_bias, "3: it has hooks"),
    "computed weight": (forget_hooks, "0: its weight is no plain parameter"),
    "weight_norm": (normalize, "0: it has hooks"),
    "parametrized": (parametrize, "0: it is a ParametrizedLinear, not nn.Linear itself"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", OBSTACLES)
@pytest.mark.parametrize("how", [compact, compress])
def test_channels_and_layers_stay(name, how):
    change, reason = OBSTACLES[name]
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 8)).eval()
    with torch.no_grad():
        model[0].weight[:32] = 0
        model[3].weight[:, 8:] = 0  # packs well
    change(model)
    want, types = model(X), [type(m) for m in model]
    if how is compact:
        assert compact(model).chains[0].reason == f"stays: {reason}"
        assert [type(m) for m in model] == types
    else:
        _, report = compress(model, prefer="memory", measure=False)
        assert report.channels.chains[0].reason == f"stays: {reason}"
        index, _, text = reason.partition(": ")
        assert {row.name: row.reason for row in report.layers}.get(index, text) == text
    assert model[0].weight.shape == (64, 8)
    torch.testing.assert_close(model(X), want)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", OBSTACLES)
def test_channels_stay_where_the_model_is_run(name):
    change, reason = OBSTACLES[name]
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 8)).eval()
    with torch.no_grad():
        model[0].weight[:32] = 0
    change(model)
    want, hooks = model(X), [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    report = compact(model, (X,))
    if name == "parametrized":  # its weight is made anew for each call
        assert "addmm" not in str(report)
        assert report.chains == []
    else:
        assert report.chains[0].reason == f"stays: {reason}"
    assert len(model[0].weight) == 64
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    torch.testing.assert_close(model(X), want)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("intermediate", "layer.0.intermediate: it has hooks"),
        ("intermediate.intermediate_act_fn", "layer.0.intermediate.intermediate_act_fn: it has hooks"),
        ("output", "layer.0.output: it has hooks"),
        ("attention.self", "layer.0.attention.self: it has hooks"),
        ("attention.output.LayerNorm", "layer.0.attention.output.LayerNorm: it has hooks"),
        ("", ""),  # sees what goes in and comes out, which stays
    ],
)
def test_modules_around_the_layers_of_a_block(path, reason):
    t = pytest.importorskip("transformers")
    config = t.BertConfig(
        vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = t.BertModel(config).eval()
    block = model.encoder.layer[0]
    block.intermediate.dense.weight.data[:8] = 0
    for part in ("query", "key", "value"):
        getattr(block.attention.self, part).weight.data[:8] = 0
    block.get_submodule(path).register_forward_hook(lambda m, x, y: None)
    found = {chain.reason.partition("encoder.")[2] for chain in compact(model).chains if chain.reason}
    assert found == ({reason} if reason else set())
    shapes = len(block.intermediate.dense.weight), len(block.attention.self.query.weight)
    assert shapes == {"a": (8, 16), "": (8, 8)}.get(path[:1], (16, 8))


class WithFeatures(nn.Sequential):
    def forward(self, x):
        hidden = self[1](self[0](x))
        return self[2](hidden), hidden


def test_a_subclass_of_sequential_has_its_own_forward():
    model = nn.ModuleList([WithFeatures(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))])
    model[0][0].weight.data[:8] = 0
    with pytest.raises(PruningError, match="no feed-forward block"):
        compact(model)
    assert model[0](X)[1].shape == (3, 16)


def test_a_module_that_comes_twice_in_a_sequence():
    softmax = nn.Softmax(-1)
    model = nn.Sequential(softmax, nn.Linear(8, 16), nn.ReLU(), softmax, nn.Linear(16, 8))
    model[1].weight.data[:8] = 0
    want = model(X)
    with pytest.raises(PruningError, match="no feed-forward block"):
        compact(model)
    assert torch.equal(model(X), want)


def test_layers_with_a_second_name_keep_their_channels():
    first = nn.Linear(8, 16)
    first.weight.data[:8] = 0
    model = nn.ModuleDict({
        "p": nn.Sequential(first, nn.ReLU(), nn.Linear(16, 8)), "q": nn.Sequential(first, nn.ReLU(), nn.Linear(16, 8)),
    })  # fmt: skip
    reasons = [chain.reason for chain in compact(model).chains]
    assert reasons == ["stays: a weight is shared with q.0", "stays: a weight is shared with p.0"]
    square = nn.Linear(8, 8)
    again = nn.Sequential(square, nn.ReLU(), square)
    square.weight.data[:4] = 0
    assert compact(again).chains[0].reason == "stays: a weight is shared with 2"


def test_a_dtype_that_no_format_has_leaves_the_model_whole():
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(3)))
    for layer in model:
        layer.weight.data.zero_()
    model[1].weight = nn.Parameter(model[1].weight.to(torch.complex64), requires_grad=False)
    _, report = compress(model, prefer="memory", measure=False)
    assert [row.reason for row in report.layers][1] == "its weight is torch.complex64"
    assert [row.format for row in report.layers] == ["32x1", "dense", "32x1"]


@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_coo])
@pytest.mark.parametrize("how", [compact, compress])
def test_tensors_of_another_layout_are_refused_by_name(how, layout):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model[2].weight = nn.Parameter(model[2].weight.detach().to_sparse(layout=layout), requires_grad=False)
    with pytest.raises(PruningError, match=rf"^2.weight: is {layout}; want a dense tensor, call to_dense\(\) on it$"):
        how(model)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_an_empty_layer_has_no_zeros():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 0))
    _, report = compress(model, prefer="memory", measure=False)
    assert report.layers[1].zeros == 0.0


@pytest.mark.parametrize("make", [lambda: nn.Linear(8, 8, device="meta"), lambda: nn.LazyLinear(8)])
@pytest.mark.parametrize("how", [compact, compress])
def test_weights_that_are_not_in_memory_are_refused_by_name(how, make):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), make())
    before = copy.copy(model[2])
    with pytest.raises(PruningError, match="^2.weight: holds no numbers .*load the whole model into memory$"):
        how(model)
    assert model[2].weight is before.weight


@pytest.mark.parametrize(
    "how",
    [
        compact, compress, decompress, lambda model: save_pretrained(model, "."), lambda model: prune_once(model),
        lambda model: Pruner(model, PruningConfig(start_step=1, end_step=2)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("model", [None, {}, torch.zeros(3)], ids=["None", "dict", "Tensor"])
def test_what_is_no_model(how, model):
    with pytest.raises(PruningError, match=f"^model: want an nn.Module, got {type(model).__name__}$"):
        how(model)
