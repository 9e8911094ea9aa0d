"""Blocks that run on a device one at a time: the result is the whole model's, and everything comes home."""

import copy

import pytest
import torch
from torch import nn

from trisparse import PruningError, prune_once
from trisparse.prune.one_shot.visits import Visits

METHODS = ["wanda", "sparsegpt", "dsnot"]


class Adds(nn.Module):
    """A block that writes to what it is given, and says how often it was called."""

    def __init__(self):
        super().__init__()
        self.inner, self.more = nn.Linear(16, 32), nn.Linear(32, 16)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x, *, scale):
        self.calls += 1
        x.add_(self.more(self.inner(x).relu()) * scale["by"])
        return x, {"scale": scale}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Adds(), Adds(), Adds()])
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        x, scale = x.clone(), {"by": torch.tensor(0.5)}
        for block in self.blocks:
            _, out = block(x, scale=scale)  # what it returns is what it was given
            scale = out["scale"]
        return self.head(self.attention(x, x, x, need_weights=False)[0])


def batches():
    torch.manual_seed(1)
    return [(torch.randn(2, 5, 16),) for _ in range(4)]


@pytest.mark.parametrize("method", METHODS)
def test_the_result_is_that_of_the_whole_model(method):
    whole, visited = Model(), Model()
    places = [tensor.data_ptr() for tensor in visited.state_dict().values()]
    reports = [prune_once(whole, method, batches(), pattern="2:4")]
    reports.append(prune_once(visited, method, batches(), pattern="2:4", device="cpu"))
    assert reports[0].to_dict() == reports[1].to_dict()
    assert len(reports[1].layers) == 8
    assert all(map(torch.equal, whole.state_dict().values(), visited.state_dict().values()))
    assert [tensor.data_ptr() for tensor in visited.state_dict().values()] == places
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in visited.modules())


def test_how_often_blocks_move(monkeypatch):
    model, moved, most = Model(), [], 0
    original = Visits._bring

    def bring(self, module):
        nonlocal most
        moved.append(next(name for name, found in model.named_modules() if found is module))
        original(self, module)
        most = max(most, len(self._away))

    monkeypatch.setattr(Visits, "_bring", bring)
    prune_once(model, "wanda", batches(), pattern="2:4", op_names=["blocks"], device="cpu")
    look = ["blocks.0", "blocks.1", "blocks.2"] * 4
    passes = ["blocks.0", "blocks.1", *["blocks.0"] * 4, "blocks.2", *["blocks.0", "blocks.1"] * 4]
    assert moved == look + passes
    assert most == 2  # the one that stays, and one that a batch passes before


def test_experts_and_language_models():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = transformers.MixtralConfig(**sizes, **heads, num_local_experts=4, num_experts_per_tok=2)
    models = [transformers.MixtralForCausalLM(config).eval()]
    for parameter in models[0].parameters():
        nn.init.normal_(parameter)
    models.append(copy.deepcopy(models[0]))
    for model, keys in zip(models, ({}, {"device": "cpu"}), strict=True):
        prune_once(model, "wanda", [{"input_ids": torch.arange(20).view(2, 10)}], pattern="2:4", **keys)
    assert all(map(torch.equal, models[0].state_dict().values(), models[1].state_dict().values()))


@pytest.mark.parametrize("when", ["between", "in a block"])
def test_an_interruption_brings_everything_home(when):
    model = Model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "calls" not in name}
    places = [tensor.data_ptr() for tensor in model.state_dict().values()]

    def stop(*_):
        if (model.blocks[0].inner.weight == 0).any():
            raise KeyboardInterrupt

    handle = model.blocks[1].more.register_forward_pre_hook(stop) if when == "in a block" else None
    with pytest.raises(KeyboardInterrupt):
        prune_once(
            model, "sparsegpt", batches(), pattern="2:4", device="cpu", progress=stop if handle is None else print
        )
    assert all(model.state_dict()[name].equal(tensor) for name, tensor in before.items())
    assert [tensor.data_ptr() for tensor in model.state_dict().values()] == places


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("bogus", "device: 'bogus' can't be used: RuntimeError: "),
        ("cuda:99", "device: 'cuda:99' can't be used: "),
        ("meta", "device: want one that computes, got 'meta'"),
        (3.5, "device: 3.5 can't be used: TypeError"),
    ],
)
def test_devices_that_cannot_be_used(device, message):
    with pytest.raises(PruningError, match=message):
        prune_once(Model(), "wanda", batches(), pattern="2:4", device=device)


@pytest.mark.gpu
def test_on_a_gpu_the_model_stays_on_the_cpu():
    model = Model()
    report = prune_once(model, "wanda", batches(), pattern="2:4", device="cuda")
    assert report.pruned_layers == 0.5
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}
