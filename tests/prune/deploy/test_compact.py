"""Compaction: the same outputs from a smaller model."""

import pytest
import torch
from torch import nn

from trisparse import Pruner, PruningConfig
from trisparse.prune.deploy.compact import compact
from trisparse.prune.errors import PruningError


def models():
    """Name -> makes a tiny model."""
    import transformers as t

    sizes = {"vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return {
        "bert": lambda: t.BertForSequenceClassification(t.BertConfig(**sizes, intermediate_size=128)),
        "distilbert": lambda: t.DistilBertForSequenceClassification(
            t.DistilBertConfig(vocab_size=50, dim=64, n_layers=2, n_heads=4, hidden_dim=128)
        ),
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=50, n_embd=64, n_layer=2, n_head=4, n_inner=128, bos_token_id=1, eos_token_id=2)
        ),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**sizes, num_key_value_heads=2, intermediate_size=128)),
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**sizes, num_key_value_heads=2, intermediate_size=128)),
    }


UP = {"bert": "intermediate.dense", "distilbert": "lin1", "gpt2": "c_fc", "llama": "up_proj", "qwen2": "gate_proj"}
DOWN = {"bert": "output.dense", "distilbert": "lin2", "gpt2": "c_proj", "llama": "down_proj", "qwen2": "down_proj"}


def layers(model, ending):
    return [m for n, m in model.named_modules() if n.endswith(ending) and "attention" not in n and "attn" not in n]


def matrix(layer):
    return layer.weight.data if isinstance(layer, nn.Linear) else layer.weight.data.t()


@pytest.fixture(params=["bert", "distilbert", "gpt2", "llama", "qwen2"])
def family(request):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = models()[request.param]().eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, std=0.3)  # biases that matter
    return request.param, model


def logits(model):
    with torch.no_grad():
        return model(torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(1))).logits


def test_channels_whose_rows_are_zero_go(family):
    name, model = family
    for layer in layers(model, UP[name]):
        matrix(layer)[::2] = 0
    want = logits(model)
    before = sum(p.numel() for p in model.parameters())
    report = compact(model)
    torch.testing.assert_close(logits(model), want)
    shrunk = [c for c in report.chains if c.units == 128]
    assert [(c.removable, c.kept) for c in shrunk] == [(64, 64)] * 2
    assert all(matrix(layer).shape[0] == 64 for layer in layers(model, UP[name]))
    assert report.parameters == (before, sum(p.numel() for p in model.parameters()))
    assert report.verified
    assert "64" in str(report)
    assert "outputs equal" in str(report)
    again = compact(model)
    assert again.parameters[0] == again.parameters[1]


def test_channels_that_nothing_reads_go_and_the_rest_is_rounded(family):
    name, model = family
    gone = torch.randperm(128)[:75]
    for layer in layers(model, DOWN[name]):
        matrix(layer)[:, gone] = 0
    want = logits(model)
    report = compact(model, multiple=16)
    torch.testing.assert_close(logits(model), want)
    assert {c.kept for c in report.chains if c.units == 128} == {64}  # 53 of 128 and the largest eleven that could go


def test_what_is_kept_beyond_need_is_the_largest():
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    with torch.no_grad():
        model[2].weight[:, 3:] = 0
        model[0].weight[3:] = torch.arange(13.0)[:, None]
    last = model[0].weight[8:].clone()
    report = compact(model, (torch.randn(3, 4),), multiple=8)
    assert (report.chains[0].removable, report.chains[0].kept) == (13, 8)
    assert torch.equal(model[0].weight[3:], last[-5:])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])  # the square of the last is infinite
def test_channels_of_numbers_that_no_zero_hides_stay(value):
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    with torch.no_grad():
        model[2].weight[:, :8] = 0
        model[0].weight[:4] = value
        model[0].bias[4] = value
    x = torch.rand(3, 4)
    want = model(x)
    report = compact(model, multiple=1)
    torch.testing.assert_close(model(x), want, equal_nan=True)
    assert report.chains[0].removable == (4 if value == 1e30 else 3)


def test_all_channels_gone_leaves_one_multiple():
    model = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Dropout(0.5), nn.Linear(16, 2)).eval()
    model[0].weight.data.zero_()
    x = torch.randn(3, 4)
    want = model(x)
    compact(model, (x,), multiple=4)
    assert model[0].weight.shape == (4, 4)
    torch.testing.assert_close(model(x), want)


def test_a_constant_that_no_bias_can_take_keeps_its_channel():
    model = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 2, bias=False))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias[:6] = 0
        model[2].weight[:, 6:8] = 0  # constant, and nothing reads it
    x = torch.randn(3, 4)
    want = model(x)
    report = compact(model, (x,), multiple=1)
    torch.testing.assert_close(model(x), want)
    assert model[2].bias is None
    assert (report.chains[0].removable, report.chains[0].kept) == (8, 8)
    assert "8 stay: 2 has no bias to take what they always give" in str(report)


@pytest.mark.parametrize("which", ["rows", "columns"])
@pytest.mark.parametrize("name", ["bert", "distilbert", "llama", "qwen2"])
def test_heads(name, which):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = models()[name]().eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, std=0.3)
    q, k, v, o = {
        "bert": ("query", "key", "value", "attention.output.dense"), "distilbert": ("q_lin", "k_lin", "v_lin", "out_lin"),
    }.get(name, ("q_proj", "k_proj", "v_proj", "o_proj"))  # fmt: skip
    shared = 1 if name in ("bert", "distilbert") else 2
    pick = [next(m for n, m in model.named_modules() if n.endswith(part)) for part in (q, k, v, o)]
    if which == "rows":
        for layer, size in zip(pick, (16 * shared, 16, 16), strict=False):
            layer.weight.data[size : 2 * size] = 0
        if pick[3].bias is None and pick[2].bias is not None:
            pick[2].bias.data[16:32] = 0
    else:
        pick[3].weight.data[:, 16 * shared : 32 * shared] = 0
    want = logits(model)
    heads = 4 // shared
    report = compact(model)
    torch.testing.assert_close(logits(model), want)
    found = [(c.units, c.removable, c.kept) for c in report.chains if c.units == heads]
    assert sorted(found) == [(heads, 0, heads), (heads, 1, heads - 1)]
    assert pick[0].weight.shape[0] == 64 - 16 * shared
    assert pick[1].weight.shape[0] == (64 - 16 * shared) // shared


def test_a_head_that_averages_its_values_stays():
    pytest.importorskip("transformers")
    model = models()["bert"]().eval()
    attention = model.bert.encoder.layer[0].attention.self
    attention.query.weight.data[:16], attention.key.weight.data[:16] = 0, 0
    assert all(c.removable == 0 for c in compact(model).chains)


def test_half_a_head_stays_and_is_named():
    pytest.importorskip("transformers")
    model = models()["bert"]().eval()
    attention = model.bert.encoder.layer[0].attention
    attention.self.query.weight.data[:20] = 0
    report = compact(model)
    assert attention.self.query.weight.shape == (64, 64)
    assert report.masked == {"bert.encoder.layer.0.attention.self.query": 20}
    why = "bert.encoder.layer.0.attention.self (BertSelfAttention) splits them into heads"
    assert f"bert.encoder.layer.0.attention.self.query: 20 rows stay, as zeros; {why}" in str(report)
    assert report.reasons == {"bert.encoder.layer.0.attention.self.query": why}
    assert report.to_dict()["masked"] == report.masked


def test_gated_channels_go_only_where_the_product_is_constant():
    pytest.importorskip("transformers")
    import transformers as t

    config = t.LlamaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, mlp_bias=True
    )
    model = t.LlamaForCausalLM(config).eval()
    mlp = model.model.layers[0].mlp
    for parameter in mlp.parameters():
        nn.init.normal_(parameter)
    with torch.no_grad():
        mlp.up_proj.weight[:4] = 0  # with a bias: the gate still decides
        mlp.up_proj.weight[4:8] = mlp.up_proj.bias[4:8, None] * 0
        mlp.up_proj.bias[4:8] = 0
        mlp.gate_proj.weight[8:10] = 0  # silu of the bias times what varies
        mlp.gate_proj.weight[10:12], mlp.up_proj.weight[10:12] = 0, 0
    want = logits(model)
    report = compact(model, multiple=1)
    torch.testing.assert_close(logits(model), want)
    assert [(c.units, c.removable) for c in report.chains if c.units == 16] == [(16, 6)]


def test_shared_weights_stay():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    extra = nn.ModuleDict({"a": model, "b": nn.Linear(8, 8)})
    extra["b"].weight = model[0].weight
    model[0].weight.data[:4] = 0
    report = compact(extra)
    assert report.chains[0].reason == "stays: a weight is shared with b"
    assert model[0].weight.shape == (8, 8)
    assert "outputs not compared" in str(report)


def test_mistakes():
    with pytest.raises(PruningError, match="model: no feed-forward block or attention that is known"):
        compact(nn.Linear(4, 4))
    for multiple in (0, "4", 1.5, True):
        with pytest.raises(PruningError, match=f"multiple: want a whole number of 1 or more, got {multiple!r}"):
            compact(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), multiple=multiple)


def test_after_channel_pruning_training_goes_on(make_mlp, sgd, train):
    model = make_mlp(dims=(16, 64, 64, 2))
    optimizer = sgd(model)
    config = PruningConfig(pattern="1xchannel", target_sparsity=0.5, start_step=1, end_step=2)
    with Pruner(model, config).attach(optimizer):
        train(model, optimizer, 2)
    model.train()
    x = torch.randn(5, 16)
    want = model.eval()(x)
    model.train()
    report = compact(model, (x,))
    assert report.parameters[1] < 0.7 * report.parameters[0]
    assert model.training
    torch.testing.assert_close(model(x), want)
    assert all(p.requires_grad for p in model.parameters())
    train(model, sgd(model), 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes(dtype):
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).to(dtype)
    model[0].weight.data[::2] = 0
    x = torch.randn(3, 16, dtype=dtype)
    want = model(x)
    assert compact(model, (x,)).chains[0].kept == 16
    torch.testing.assert_close(model(x), want, rtol=2e-2, atol=2e-2)
