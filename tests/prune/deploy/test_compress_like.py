"""A compressed module's state_dict goes into a fresh one that is made like it, or nothing changes."""

import json

import pytest
import torch
from torch import nn

from trisparse import PruningError, compress, compress_like, decompress, describe, save_pretrained
from trisparse.sparse_ops import Linear24, LinearBlocks, nm_mask

transformers = pytest.importorskip("transformers")


class Around(nn.Module):
    """A module of one's own around a model of transformers; one of its layers has two names."""

    def __init__(self):
        super().__init__()
        sizes = {"vocab_size": 20, "n_embd": 64, "n_layer": 1, "n_head": 2, "bos_token_id": 1, "eos_token_id": 1}
        self.inner = transformers.GPT2Model(transformers.GPT2Config(**sizes))
        self.first = nn.Linear(64, 64)
        self.again = self.first
        self.block = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 5))

    def forward(self, ids):
        return self.block(self.again(self.first(self.inner(input_ids=ids).last_hidden_state)))


IDS = torch.arange(12).view(2, 6)


@pytest.fixture
def compressed():
    """2:4, vectors, blocks of transformers' own Conv1D, and channels that are gone."""
    model = Around().eval()
    with torch.no_grad():
        model.first.weight *= nm_mask(model.first.weight, 2, 4)
        model.block[0].weight[:40] = 0
        model.block[3].bias.normal_()
        model.inner.h[0].mlp.c_fc.weight *= (torch.rand(4, 16) < 0.3).repeat_interleave(16, 0).repeat_interleave(16, 1)
        model.inner.h[0].mlp.c_proj.weight *= (torch.rand(256, 16) < 0.2).repeat_interleave(4, 1)
        want = model(IDS)
        compress(model, prefer="memory", measure=False, example=(IDS,))
        torch.testing.assert_close(model(IDS), want)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_state_dict_loads_into_a_fresh_module(compressed, tmp_path, dtype):
    torch.save(compressed.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "layers.json").write_text(json.dumps(describe(compressed)))

    fresh = Around().to(dtype).eval()
    same = compress_like(fresh, json.loads((tmp_path / "layers.json").read_text()))
    fresh.load_state_dict(torch.load(tmp_path / "weights.pt"))
    assert same is fresh
    assert fresh.again is fresh.first
    with torch.no_grad():
        torch.testing.assert_close(fresh(IDS), compressed(IDS).to(dtype))
    assert [type(m) for m in fresh.modules()] == [type(m) for m in compressed.modules()]
    assert {Linear24, LinearBlocks} <= {type(m) for m in fresh.modules()}
    assert fresh.block[0].weight.shape == (24, 64)
    assert describe(fresh) == describe(compressed)
    with torch.no_grad():
        torch.testing.assert_close(decompress(fresh)(IDS), compressed(IDS).to(dtype))
    fresh.load_state_dict(Around().state_dict())


def test_until_then_it_computes_with_zeros(compressed):
    fresh = compress_like(Around().eval(), describe(compressed))
    assert not fresh.first.weight.any()
    assert not fresh.block[0].weight.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["layers"].update(nowhere=d["layers"]["first"]), "layers: nowhere: want the model as it was before .*"),
        (lambda d: d["layers"].update({"inner.wte": d["layers"]["first"]}), "inner.wte: .* found Embedding, not a dense"),
        (lambda d: d["layers"]["first"].update(full_shape=[64, 96]), r"first: full_shape: want \[64, 64\], as the model"),
        (lambda d: d["layers"]["first"].update(format="5:9"), "first: is damaged or of another version: format: want"),
        (lambda d: d.update(format_version=9), "format_version: want 1, got 9"),
        (lambda d: d.pop("quant_method"), "want quant_method 'trisparse'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_changes_nothing(compressed, change, message):
    description = json.loads(json.dumps(describe(compressed)))
    change(description)
    fresh = Around()
    before = {name: (type(m), tuple(p.shape for p in m.parameters())) for name, m in fresh.named_modules()}
    with pytest.raises(PruningError, match=f"^description: .*{message}") as caught:
        compress_like(fresh, description)
    assert "\n" not in str(caught.value)
    assert {name: (type(m), tuple(p.shape for p in m.parameters())) for name, m in fresh.named_modules()} == before


def test_a_compressed_module_is_not_fresh(compressed):
    with pytest.raises(
        PruningError, match="first: want the model as it was before compress, found Linear24, not a dense"
    ):
        compress_like(
            compressed, {**describe(compressed), "layers": {"first": describe(compressed)["layers"]["first"]}}
        )


def test_save_pretrained_points_there(compressed, tmp_path):
    with pytest.raises(PruningError, match="^model: want a transformers model, got Around; .* for compress_like$"):
        save_pretrained(compressed, tmp_path / "x")
    assert not (tmp_path / "x").exists()
