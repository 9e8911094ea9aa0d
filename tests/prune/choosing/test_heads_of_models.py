"""Pattern `mha` on models of transformers and of torch."""

import copy

import pytest
import torch
from torch import nn

from trisparse import (
    Pruner,
    PruningConfig,
    PruningError,
    compact,
    compress,
    from_pretrained,
    prune_once,
    save_pretrained,
)

T = pytest.importorskip("transformers")
SIZES = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = {"input_ids": torch.arange(3, 21).view(2, 9)}
PICTURE = {"pixel_values": torch.linspace(-1, 1, 2 * 192).view(2, 3, 8, 8)}
GPT2 = {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 1}
OPT = {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 32}
T5 = {
    "vocab_size": 40, "d_model": 32, "d_kv": 4, "d_ff": 64, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0,
}  # fmt: skip
ROWS = [  # class, config, inputs, layers, whether compact removes heads
    ("BertModel", SIZES, TEXT, 8, True),
    ("RobertaModel", SIZES, TEXT, 8, True),
    ("DistilBertModel", {"vocab_size": 40, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}, TEXT, 8, True),
    ("ViTModel", {**SIZES, "image_size": 8, "patch_size": 4}, PICTURE, 8, True),
    ("LlamaModel", {**SIZES, "num_attention_heads": 8, "num_key_value_heads": 4}, TEXT, 8, True),
    ("GPT2Model", GPT2, TEXT, 4, False),
    ("OPTModel", OPT, TEXT, 8, False),
    ("T5Model", T5, {**TEXT, "decoder_input_ids": TEXT["input_ids"]}, 12, False),
]


def config(**keys):
    return PruningConfig(**{"pattern": "mha", "target_sparsity": 0.5, "start_step": 1, "end_step": 1, **keys})


def build(name, sizes):
    torch.manual_seed(0)
    kind = getattr(T, name)
    return kind(kind.config_class(**sizes))


@pytest.mark.parametrize(("name", "sizes", "inputs", "layers", "can_shrink"), ROWS, ids=[row[0] for row in ROWS])
def test_heads_of_transformers(name, sizes, inputs, layers, can_shrink):
    model = build(name, sizes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pruner = Pruner(model, config(end_step=3))
    with pruner.attach(optimizer):
        for _ in range(4):
            model(**inputs).last_hidden_state.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    report = pruner.report()
    assert len(report.layers) == layers
    assert report.pruned_layers == 0.5
    assert report.pattern_verified
    before = sum(p.numel() for p in model.parameters())
    weights = sum(layer.numel for layer in pruner.layers)
    biases = sum(len(layer.module._parameters[layer.bias]) for layer in pruner.layers if layer.bias)
    if can_shrink:
        found = compact(model.eval(), inputs)
        assert found.verified
        assert found.parameters == (before, before - weights // 2 - biases // 2)
    elif biases:
        found = [layer.module._parameters[layer.bias] for layer in pruner.layers if layer.bias]
        assert sum(int((bias == 0).sum()) for bias in found) == biases // 2


def test_the_heads_of_a_fused_weight_are_those_of_the_weights_it_is_made_of():
    """GPT-2's `c_attn` is `[inputs, 3 * heads * size]`, and head 2 of 4 is the columns 16 to 23 of each third."""
    model = build("GPT2Model", {**GPT2, "n_layer": 1})
    attention = model.h[0].attn
    with torch.no_grad():
        attention.c_attn.weight[:, 32 + 16 : 32 + 24] *= 1e-6  # of keys
        attention.c_attn.weight[:, 64 + 16 : 64 + 24] *= 1e-6  # of values
        attention.c_attn.weight[:, 16:24] *= 1e-6
    attention.c_attn.bias.data.fill_(1.0)
    prune_once(model, pattern="mha", target_sparsity=0.25)
    thirds = (attention.c_attn.weight != 0).view(32, 3, 4, 8)
    assert (~thirds).all(dim=(0, 1, 3)).tolist() == thirds.logical_not().any(dim=(0, 1, 3)).tolist()
    assert (~thirds).all(dim=(0, 1, 3)).tolist() == [False, False, True, False]
    assert attention.c_attn.bias.view(3, 4, 8).eq(0).all(dim=2).tolist() == [[False, False, True, False]] * 3
    assert attention.c_proj.weight[16:24].eq(0).all()
    assert int((attention.c_proj.weight == 0).sum()) == 8 * 32


def test_heads_of_torch():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    nn.init.ones_(layer.self_attn.in_proj_bias)
    report = prune_once(nn.Sequential(layer, nn.Linear(16, 2)), pattern="mha", target_sparsity=0.5)
    assert [row.name for row in report.layers] == ["0.self_attn.in_proj_weight", "0.self_attn.out_proj"]
    gone = layer.self_attn.in_proj_weight.view(3, 4, 4 * 16).eq(0).all(2)
    assert gone.sum(1).tolist() == [2, 2, 2]
    assert torch.equal(gone[0], gone[2])
    assert torch.equal(layer.self_attn.in_proj_bias.view(3, 4, 4).eq(0).all(2)[0], gone[0])
    assert torch.equal(layer.self_attn.out_proj.weight.t().reshape(4, -1).eq(0).all(1), gone[0])


def test_zeroed_biases_change_nothing_that_the_model_gives():
    model = build("BertModel", SIZES).eval()
    for layer in model.encoder.layer:
        for part in (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value):
            nn.init.normal_(part.bias)
    other = copy.deepcopy(model)
    prune_once(model, pattern="mha", target_sparsity=0.5)
    with torch.no_grad():
        for a, b in zip(model.modules(), other.modules(), strict=True):
            if isinstance(a, nn.Linear):
                b.weight.copy_(a.weight)
    ours, theirs = model(**TEXT).last_hidden_state, other(**TEXT).last_hidden_state
    assert not torch.equal(
        model.encoder.layer[0].attention.self.value.bias, other.encoder.layer[0].attention.self.value.bias
    )
    assert torch.equal(ours, theirs)


def test_compress_removes_heads_and_the_model_is_loaded_without_them(tmp_path):
    model = build("BertForSequenceClassification", {**SIZES, "num_hidden_layers": 1}).eval()
    prune_once(model, pattern="mha", target_sparsity=0.5)
    want = model(**TEXT).logits
    small, _ = compress(model, prefer="memory")
    assert small.bert.encoder.layer[0].attention.self.query.weight.shape == (16, 32)
    save_pretrained(small, tmp_path / "small")
    assert torch.allclose(from_pretrained(tmp_path / "small")(**TEXT).logits, want, atol=1e-6)


def test_beside_another_group_and_without_some_attentions():
    model = build("BertModel", SIZES)
    groups = [{"pattern": "mha", "op_names": ["attention"]}, {"pattern": "4x1", "op_names": ["intermediate"]}]
    pruner = Pruner(model, PruningConfig(target_sparsity=0.5, start_step=1, end_step=2, pruning_configs=groups))
    assert [len(group.layers) for group in pruner.groups] == [8, 2]
    out = config(excluded_op_names=[r"layer\.0\.attention\.self\.query"])
    assert {layer.attention for layer in Pruner(model, out).layers} == {"encoder.layer.1.attention"}
    with pytest.raises(PruningError, match=r"pruning_configs: .*0\.attention\.self\.query is in groups 0 and 1"):
        Pruner(
            model,
            PruningConfig(start_step=1, end_step=2, target_sparsity=0.5, pruning_configs=[{"pattern": "mha"}, {}]),
        )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"pruning_type": "snip_progressive"}, "pruning_type: 'snip_progressive' can't cut a head in parts; use 'snip'"),
        ({"reg_type": "group_lasso", "reg_coeff": 0.1}, "reg_type: group_lasso can't shrink a head"),
        ({"op_names": ["query"]}, r"op_names: \['query'\] finds .*query but not .*key.* name the attention"),
        ({"op_names": ["nothing"]}, r"op_names: \['nothing'\] .* finds no attention for group 0; the model has encoder"),
        ({"pruning_op_types": ["Conv"]}, "finds no attention for group 0"),
        ({"target_sparsity": 0.9}, r"target_sparsity: 0.9 is out of reach for mha, .* each attention stays; want at most 0.75"),
        ({"target_sparsity": 0.9, "pruning_scope": "local"}, r"one head of encoder\.layer\.0\.attention stays"),
    ],
)  # fmt: skip
def test_mistakes(keys, message):
    with pytest.raises(PruningError, match=message) as caught:
        Pruner(build("BertModel", SIZES), config(**keys))
    assert "\n" not in str(caught.value)
