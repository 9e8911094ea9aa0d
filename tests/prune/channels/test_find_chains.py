"""Chains found in what a model does: other people's architectures, and small networks for each way to read channels."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (as everyone writes it)

from trisparse import PruningError, compact, compress, decompress, from_pretrained, save_pretrained
from trisparse.prune.channels.same_outputs import outputs_of
from trisparse.prune.deploy.export import export
from trisparse.prune.layers.modules import is_hf_conv1d

IDS = {"input_ids": torch.arange(1, 9)[None]}
BOTH = {**IDS, "decoder_input_ids": IDS["input_ids"]}
SOUND = {"input_features": torch.linspace(-1, 1, 160).view(1, 8, 20), "decoder_input_ids": IDS["input_ids"]}
PICTURE = {"pixel_values": torch.linspace(-1, 1, 768).view(1, 3, 16, 16)}
SIZES = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HALVES = {
    "vocab_size": 50, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
T5 = {"vocab_size": 50, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}
HEADS, SUM = "splits them into heads", "a residual sum in"
# class, config, example; layers whose rows are half zero, how many blocks there are, and others with what reads them
FAMILIES = {
    "vit": ("ViTForImageClassification", {**SIZES, "image_size": 16, "patch_size": 8}, PICTURE, ("fc1",), 1, {
        "fc2": SUM, "q_proj": HEADS, "o_proj": SUM, "projection": "a concatenation in", "classifier": "gives them out",
    }),
    "modernbert": ("ModernBertForSequenceClassification", {**SIZES, "global_attn_every_n_layers": 1}, IDS, ("Wi",), 1, {
        "Wqkv": HEADS, "mlp.Wo": SUM, "head.dense": "head.norm (LayerNorm) reads them",
    }),
    "albert": ("AlbertForSequenceClassification", {**SIZES, "num_hidden_layers": 3, "embedding_size": 16}, IDS, ("ffn",),
        1, {"ffn_output": SUM, "attention.key": HEADS}),
    "t5": ("T5ForConditionalGeneration", T5, BOTH, ("wi",), 2, {"wo": SUM, "SelfAttention.v": HEADS}),
    "t5 gated": ("T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu"}, BOTH, ("wi_0", "wi_1"), 2, {
        "wo": SUM, "lm_head": "read outside of its own forward, in encoder.embed_tokens (Embedding)",
    }),
    "whisper": ("WhisperForConditionalGeneration", {**HALVES, "num_mel_bins": 8, "max_source_positions": 10}, SOUND,
        ("fc1",), 2, {"fc2": SUM, "conv2": "a sum in model.encoder", "encoder_attn.q_proj": HEADS}),
    "bart": ("BartForConditionalGeneration", HALVES, IDS, ("fc1",), 2, {"fc2": SUM, "self_attn.k_proj": HEADS}),
    "opt": ("OPTForCausalLM", {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32}, IDS, ("fc1",), 1, {"fc2": SUM}),
    "phi3": ("Phi3ForCausalLM", SIZES, IDS, ("gate_up_proj",), 1, {"down_proj": SUM, "qkv_proj": HEADS}),
    "llama": ("LlamaForCausalLM", SIZES, IDS, ("gate_proj", "up_proj"), 1, {"down_proj": SUM, "v_proj": HEADS}),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 50, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_inner": 64}, IDS,
        ("c_fc",), 1, {"mlp.c_proj": SUM, "c_attn": HEADS}),
    "bert": ("BertForSequenceClassification", SIZES, IDS, ("intermediate.dense",), 1, {"layer.0.output.dense": SUM}),
    "distilbert": ("DistilBertForSequenceClassification", {
        "vocab_size": 50, "dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64,
    }, IDS, ("lin1",), 1, {"lin2": SUM}),
}  # fmt: skip


def make(name):
    """A tiny model in evaluation mode, biases that matter."""
    import transformers

    kind, config, *_ = FAMILIES[name]
    kind = getattr(transformers, kind)
    model = kind(kind.config_class(**config)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, std=0.3)
    return model


def zero_rows(model, endings):
    """Every second row, of layers whose names end so."""
    for name, layer in model.named_modules():
        if name.endswith(tuple(endings)) and hasattr(layer, "weight"):
            (layer.weight.data.t() if is_hf_conv1d(layer) else layer.weight.data)[::2] = 0


def outputs(model, example):
    with torch.no_grad():
        return outputs_of(model, example)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_feed_forward_channels_of_an_architecture_go(name):
    pytest.importorskip("transformers")
    _, _, example, up, blocks, stay = FAMILIES[name]
    model = make(name)
    zero_rows(model, [*up, *stay])
    want, before = outputs(model, example), count(model)
    report = compact(model, example)
    torch.testing.assert_close(outputs(model, example), want)
    gone = [c for c in report.chains if c.units == 64]
    assert [(c.removable, c.kept, c.reason) for c in gone] == [(32, 32, "")] * blocks
    assert count(model) <= before - blocks * 32 * 32 * 2
    assert (report.note, report.verified) == ("", True)
    found = {name: {why for key, why in report.reasons.items() if key.endswith(name)} for name in stay}
    for layer, reasons in found.items():
        assert reasons, layer
        assert all(stay[layer] in why for why in reasons), reasons
    decompress(model)
    assert count(model) == before
    torch.testing.assert_close(outputs(model, example), want)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["albert", "bart", "gpt2", "modernbert", "phi3", "t5 gated"])
def test_what_became_smaller_is_saved_and_comes_back(name, packed, tmp_path):
    """Of two halves of one projection each has its zeros at its own end."""
    pytest.importorskip("transformers")
    example, up = FAMILIES[name][2:4]
    model = make(name)
    zero_rows(model, up)
    for layer in [
        layer for key, layer in model.named_modules() if packed and key.endswith(up) and hasattr(layer, "bias")
    ]:
        (layer.weight.data.t() if is_hf_conv1d(layer) else layer.weight.data)[:, 8:] = 0
    want, before = outputs(model, example), count(model)
    _, report = compress(model, "memory", measure=False, example=example)
    assert {row.format != "dense" for row in report.layers if row.name.endswith(up)} == {packed}
    save_pretrained(model, tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    export(model, tmp_path / "dense", "dense")
    for folder in ("ours", "theirs", "dense"):
        for again in (from_pretrained(tmp_path / folder), type(model).from_pretrained(tmp_path / folder)):
            torch.testing.assert_close(outputs(again, example), want)
            assert (count(again) < before) == (folder != "dense")
            assert count(decompress(again)) == before
            torch.testing.assert_close(outputs(again, example), want)


class Network(nn.Module):
    """Layers `a`, `b` and `c`, and a forward that is given."""

    def __init__(self, forward, a, b, c=None):
        super().__init__()
        self.a, self.b, self.c, self.does = a, b, c, forward

    def forward(self, x):
        return self.does(self, x)


def linears(wide=16):
    return nn.Linear(8, wide), nn.Linear(16, 8)


def gated(how):
    def forward(self, x):
        a, b = how(self.a(x))
        return self.b(F.silu(a) * b)

    return forward


def repeated(self, x):
    for _ in range(3):
        x = self.b(F.gelu(self.a(x)))
    return x


def squeezed(self, x):
    hidden = F.relu(self.a(x))
    return self.b(hidden * torch.sigmoid(self.c(hidden.mean((2, 3), keepdim=True))))


def remembered(self, x):
    self.last = F.relu(self.a(x))
    return self.b(self.last)


def written(self, x):
    hidden = F.relu(self.a(x))
    return self.b(hidden) + hidden.new_zeros(3, 20)[:, :16].copy_(hidden).std()


def through_a_view(self, x):
    hidden = self.a(x)
    hidden.view(3, 4, 4).relu_()
    return self.b(hidden)


VECTORS, PICTURES = torch.randn(3, 8), torch.randn(2, 3, 8, 8)
# what a network does with what `a` makes, half of whose rows are zero; units, how many go, and why others stay
NETWORKS = {
    "two readers": (lambda m, x: m.b(F.relu(m.a(x))) + m.c(m.a(x).relu()), (*linears(), nn.Linear(16, 8)), VECTORS, 16, 8, ""),
    "three calls": (repeated, linears(), VECTORS, 16, 8, ""),
    "one output": (lambda m, x: m.b(F.relu(m.a(x))), (nn.Linear(8, 16), nn.Linear(16, 1)), VECTORS, 16, 8, ""),
    "chunk": (gated(lambda h: h.chunk(2, -1)), linears(32), VECTORS, 16, 8, ""),
    "slices": (gated(lambda h: (h[..., : h.shape[-1] // 2], h[..., h.shape[-1] // 2 :])), linears(32), VECTORS, 16, 8, ""),
    "glu": (lambda m, x: m.b(F.glu(m.a(x))), linears(32), VECTORS, 16, 8, ""),
    "tanh by hand": (lambda m, x: m.b(0.5 * m.a(x) * (1 + torch.tanh(m.a(x) + 0.04 * m.a(x).pow(3)))), linears(), VECTORS, 16, 8, ""),
    "halves that cross": (gated(lambda h: (h[..., :16], h[..., 16:].flip(-1))), linears(32), VECTORS, 16, 0, "stays: a has them in another order, or not all"),
    "mask": (lambda m, x: m.b(F.gelu(m.a(x)) * (x[:, :1] > 0)), linears(), VECTORS, 16, 0, "8 with zero rows stay: what b reads of them is not always the same"),
    "sum with one that varies": (lambda m, x: m.b(F.relu(m.a(x) + x[:, :1])), linears(), VECTORS, 16, 0, "8 with zero rows stay: what b reads of them is not always the same"),
    "two inputs of one": (lambda m, x: m.b(F.gelu(m.a(x))) + m.b(F.gelu(m.c(x))), (*linears(), nn.Linear(8, 16)), VECTORS, 16, 0, "8 with zero rows stay: what b reads of them is not always the same"),
    "conv": (lambda m, x: m.b(F.relu(m.a(x))), (nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3)), PICTURES, 16, 8, ""),
    "flat": (lambda m, x: m.b(F.max_pool2d(m.a(x).relu(), 2).flatten(1)), (nn.Conv2d(3, 16, 3), nn.Linear(144, 8)), PICTURES, 16, 8, ""),
    "channels last": (lambda m, x: m.b(m.a(x).permute(0, 2, 3, 1).flatten(1)), (nn.Conv2d(3, 16, 3), nn.Linear(576, 8)), PICTURES, 16, 8, ""),
    "1-D to linear": (lambda m, x: m.b(m.a(x).transpose(1, 2)), (nn.Conv1d(8, 16, 1), nn.Linear(16, 8)), VECTORS[..., None], 16, 8, ""),
    "squeezed": (squeezed, (nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 1), nn.Conv2d(16, 16, 1)), PICTURES, 16, 8, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_go_from_all_that_share_them(name):
    forward, layers, x, units, gone, reason = NETWORKS[name]
    model = Network(forward, *copy.deepcopy(layers)).eval()
    zero_rows(model, ["a", "c"])
    want, before = outputs(model, (x,)), count(model)
    report = compact(model, (x,), multiple=1)
    assert [(c.units, c.removable, c.kept, c.reason) for c in report.chains] == [(units, gone, units - gone, reason)]
    torch.testing.assert_close(outputs(model, (x,)), want)
    y = torch.randn_like(x)
    small = outputs(model, (y,))
    decompress(model)
    assert count(model) == before
    torch.testing.assert_close(outputs(model, (y,)), small)


READERS = {
    "layer norm": (lambda m, x: m.b(m.c(m.a(x))), nn.LayerNorm(16), "c (LayerNorm) reads them"),
    "softmax": (lambda m, x: m.b(m.a(x).softmax(-1)), None, "a softmax in the model (Network) reads them"),
    "residual": (lambda m, x: m.b(m.a(x) + x.repeat(1, 2)), None, "a residual sum in the model (Network) reads them"),
    "concatenation": (lambda m, x: m.b(torch.cat([m.a(x)[:, :8], x], 1)), None, "a concatenation in the model (Network) reads them"),
    "output": (lambda m, x: m.a(x), None, "the model gives them out"),
    "memory": (remembered, None, "the model gives them out"),
    "another tensor": (written, None, "a copy into another tensor in the model (Network) reads them"),
    "written to under another shape": (through_a_view, None, "the model (Network) splits them"),
    "written to under another name": (lambda m, x: (h := m.a(x), h.view(1, 3, 16).relu_(), m.b(h))[2], None, "relu in the model (Network) reads them"),
    "weight alone": (lambda m, x: m.b(m.a(x)) + F.linear(x, m.a.weight.data).std(), None, "its weight is read outside of its own forward, in the model (Network)"),
    "one of them": (lambda m, x: m.b(m.a(x)) * m.a(x)[:, :1], None, "the model (Network) takes single ones of them"),
    "heads": (lambda m, x: m.b(m.a(x).view(3, 2, 8).flatten(1)), None, "the model (Network) splits them"),
    "product": (lambda m, x: m.a(x) @ m.b.weight.t(), None, "a product in the model (Network) reads them"),
    "nothing": (lambda m, x: (m.a(x), m.b(x.repeat(1, 2)))[1], None, "nothing reads them"),
    "no call": (lambda m, x: m.b(x.repeat(1, 2)), None, "the example never reaches it"),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_the_reason_names_what_reads(name):
    forward, third, reason = READERS[name]
    model = Network(forward, *linears(), third).eval().requires_grad_(False)
    zero_rows(model, ["a"])
    before = model.a.weight
    report = compact(model, (VECTORS,))
    assert (report.masked, report.reasons) == ({"a": 8}, {"a": reason})
    assert f"a: 8 rows stay, as zeros; {reason}" in str(report)
    assert model.a.weight is before


def test_without_an_example_names_are_all_there_is():
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)), "b": nn.Linear(8, 8)})
    for layer in (model["a"][0], model["b"]):
        layer.weight.data[::2] = 0
    for example, why in ((None, "no example is given"), ((VECTORS,), "the model does not run on the example (NotImpl")):
        report = compact(model) if example is None else compress(model, example=example)[1].channels
        assert report.note.startswith(why)
        assert f"chains were found by names, since {why}" in str(report)
        assert report.reasons["b"].startswith(f"what reads them is not known, since {why}")


def test_a_layer_of_torch_whose_fast_path_reads_weights():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
    zero_rows(model, ["linear1", "out_proj"])
    x = torch.randn(2, 5, 16)
    want = outputs(model, (x,))
    report = compact(model, (x,))
    assert [(c.units, c.kept) for c in report.chains] == [(32, 16)] * 2
    assert report.reasons["layers.0.self_attn.out_proj"] == (
        "its weight is read outside of its own forward, in layers.0.self_attn (MultiheadAttention)"
    )
    torch.testing.assert_close(outputs(model, (x,)), want)


def test_rows_that_read_constants_alone_are_constant_too():
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 8)).eval()
    zero_rows(model, ["0"])
    model[2].weight.data[:8, 1::2] = 0
    want = outputs(model, (VECTORS,))
    report = compact(model, (VECTORS,), multiple=1)
    assert [c.kept for c in report.chains] == [8, 8]
    torch.testing.assert_close(outputs(model, (VECTORS,)), want)


@pytest.mark.parametrize("what", ["scale", "branch"])
def test_what_depends_on_the_sizes_of_the_example_stays(what):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(16, 32), nn.Linear(32, 8)

        def forward(self, x):
            h = self.a(x)
            if what == "scale":
                return self.b(h * x.shape[1])
            return self.b(h - h.mean(-1, keepdim=True) if x.shape[1] < 5 else h)

    model = Odd().eval()
    with torch.no_grad():
        model.a.weight[::2] = 0
        model.a.bias.fill_(0.3)
    small = copy.deepcopy(model)
    with contextlib.suppress(PruningError):
        compact(small, (torch.randn(2, 8, 16),), multiple=1)
    for tokens in (8, 3, 20):
        x = torch.randn(2, tokens, 16)
        torch.testing.assert_close(small(x), model(x))
