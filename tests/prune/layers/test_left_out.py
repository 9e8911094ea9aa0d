"""What is left dense unless it is named: shared tables, adapters, convolutions that M does not divide; and what is refused."""

import pytest
import torch
from torch import nn

from trisparse import Pruner, PruningConfig, PruningError, compress, prune_once
from trisparse.prune.layers.left_out import is_named

OK = {"start_step": 1, "end_step": 2}


class Tied(nn.Module):
    """A language model whose decoder, not its last layer, is the embedding table."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(16, 8)
        self.inner = nn.Linear(8, 8)
        self.decoder = nn.Linear(8, 16, bias=False)
        self.decoder.weight = self.table.weight
        self.head = nn.Linear(8, 2)


def test_a_weight_that_an_embedding_holds_is_left_alone_and_said():
    model = Tied()
    report = prune_once(model, pattern="2:4")
    assert [row.name for row in report.layers] == ["inner"]
    assert (model.table.weight != 0).all()
    note = "left dense unless op_names names it: decoder, which has its weight in common with table (Embedding)"
    assert note in report.notes


def test_it_is_pruned_where_it_is_named():
    model = Tied()
    report = prune_once(model, pattern="2:4", op_names=["decoder"])
    assert [row.name for row in report.layers] == ["decoder"]
    assert int((model.table.weight == 0).sum()) == 64
    assert not any(note.startswith("left dense") for note in report.notes)


def test_an_expression_that_finds_everything_names_nothing():
    def config(*names):
        return PruningConfig(**OK, op_names=names).groups[0]

    assert not any(is_named(config(name), "decoder") for name in (".*", "", "^.*$", "(.*)", ".+", "inner"))
    assert is_named(config(".*", "deco"), "decoder")
    assert not is_named(config("deco"), "decoder.adapter", ["decoder"])
    assert is_named(config("adapter"), "decoder.adapter", ["decoder"])


def test_two_linear_layers_may_share_a_weight():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    model[1].weight = model[0].weight
    assert prune_once(model, pattern="2:4").pruned_layers == 0.5


@pytest.mark.parametrize("channels", [3, 2, 6])  # of 2 and 6, taps times channels are in fours, groups would cross taps
def test_groups_of_a_convolution_never_cross_taps(channels):
    model = nn.Sequential(nn.Conv2d(channels, 8, 2), nn.Conv2d(8, 8, 2), nn.Flatten(), nn.Linear(8, 2))
    report = prune_once(model, pattern="2:4")
    assert [row.name for row in report.layers] == ["1"]
    groups = model[1].weight.permute(0, 2, 3, 1).unflatten(-1, (-1, 4))
    assert ((groups != 0).sum(-1) == 2).all()
    assert (
        f"left dense unless op_names names it: 0, which M of 2:4 does not divide ({channels} input channels are no multiple of 4)"
        in report.notes
    )
    with pytest.raises(PruningError, match=rf"pattern: 2:4 does not divide 0 \({channels} input channels"):
        prune_once(model, pattern="2:4", op_names=["^0$"])


def test_what_was_left_out_is_said_where_nothing_else_is_found():
    model = nn.Sequential(nn.Conv2d(3, 8, 2), nn.ReLU())
    with pytest.raises(PruningError, match="finds no layer .* left dense unless op_names names it: 0, which M of 2:4"):
        prune_once(model, pattern="2:4")


class LowRank(nn.Module):
    """A homemade adapter."""

    def __init__(self, rank=2):
        super().__init__()
        self.linear = nn.Linear(8, 12).requires_grad_(False)
        self.down = nn.Linear(8, rank, bias=False)
        self.up = nn.Linear(rank, 12, bias=False)

    def forward(self, x):
        return self.linear(x) + self.up(self.down(x))


def test_adapters_are_known_by_their_structure():
    model = nn.Sequential(LowRank(), nn.Linear(12, 2))
    report = prune_once(model, pattern="4x1", target_sparsity=0.5)
    assert [row.name for row in report.layers] == ["0.linear"]
    assert "left dense unless op_names names it: 0.down, 0.up, which is an adapter or a frozen copy" in report.notes
    model[0].linear.requires_grad_(True)  # an ordinary bottleneck beside a layer
    assert len(prune_once(model, pattern="1x1", target_sparsity=0.5).layers) == 3


@pytest.fixture
def lora():
    """A tiny Llama with LoRA on two of its projections, and a copy of its last layer that trains."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    sizes = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)

    def make(**options):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
        options = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False} | options
        return model, peft.get_peft_model(model, peft.LoraConfig(**options))

    return make


def test_of_a_peft_model_the_base_is_pruned(lora):
    _, model = lora(modules_to_save=["o_proj"])
    report = prune_once(model, pattern="2:4")
    names = [row.name.split("layers.0.")[-1] for row in report.layers]
    assert names == [
        "self_attn.q_proj.base_layer", "self_attn.k_proj", "self_attn.v_proj.base_layer",
        "self_attn.o_proj.modules_to_save.default", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    ]  # fmt: skip
    assert any("self_attn.q_proj.lora_A.default" in note and "is an adapter" in note for note in report.notes)


def test_a_merged_adapter_would_take_the_zeros_away(lora):
    _, model = lora()
    model.merge_adapter()
    message = (
        r"q_proj.base_layer: holds its adapter merged, .*; call unmerge_adapter\(\) or merge_and_unload\(\) before"
    )
    with pytest.raises(PruningError, match=message):
        prune_once(model, pattern="2:4")
    report = prune_once(model, pattern="2:4", excluded_op_names=["[qv]_proj"])
    assert report.pruned_layers == 0.5
    model.unmerge_adapter()
    assert prune_once(model, pattern="2:4").pruned_layers == 0.5


class Packed8(torch.Tensor):
    """A weight of another library."""


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda m: setattr(m[1], "weight", nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), False)), "its weight is torch.int8"),
        (lambda m: setattr(m[1], "weight", nn.Parameter(m[1].weight.to(torch.float8_e4m3fn), False)), "its weight is torch.float8_e4m3fn"),
        (lambda m: setattr(m[1], "weight", nn.Parameter(m[1].weight.detach().as_subclass(Packed8), False)), "its weight is a Packed8 of "),
        (lambda m: m[1].register_buffer("qweight", torch.zeros(1)), "it is a Linear, which holds qweight"),
    ],
)  # fmt: skip
def test_weights_of_other_libraries_are_refused_with_the_order_that_works(spoil, what):
    def model():
        made = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
        spoil(made)
        return made

    message = rf"^1: is quantized \({what}.*\); prune first, then quantize, or add '\^1\$' to excluded_op_names$"
    with pytest.raises(PruningError, match=message):
        Pruner(model(), PruningConfig(**OK))
    with pytest.raises(PruningError, match=message):
        prune_once(model(), pattern="2:4")
    assert [row.name for row in prune_once(model(), pattern="2:4", excluded_op_names=["1"]).layers] == ["0"]


def test_a_packed_model_is_to_be_decompressed_first():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 2))
    prune_once(model, pattern="2:4")
    packed, _ = compress(model, prefer="memory", measure=False)
    with pytest.raises(PruningError, match=r"^0: is packed; call decompress\(model\) first"):
        prune_once(packed, pattern="2:4")


def train_adapters(model):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(2):
        ids = torch.randint(16, (2, 8), generator=torch.Generator().manual_seed(step))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_zeros_survive_merging_adapters(lora):
    base, model = lora()
    prune_once(base, pattern="2:4")
    lock = Pruner(model, PruningConfig(pattern="2:4", pruning_type="pattern_lock"))
    train_adapters(model)
    merged = model.merge_and_unload()
    weight = merged.model.layers[0].self_attn.q_proj.weight
    assert (weight != 0).all()  # which is what PEFT does
    lock.apply_masks(merged)
    again = prune_once(merged, pattern="2:4")
    assert again.pattern_verified
    assert all(row.zeros == row.weights // 2 for row in again.layers)


def test_a_lock_on_a_frozen_base_needs_no_optimizer_that_holds_it(lora):
    base, model = lora()
    prune_once(base, pattern="2:4")
    pruner = Pruner(model, PruningConfig(pattern="2:4", pruning_type="pattern_lock"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    with pruner.attach(optimizer):
        ids = torch.randint(16, (2, 8))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    assert pruner.report().pattern_verified


def test_scores_of_a_frozen_base_are_refused_with_what_works(lora):
    _, model = lora()
    pruner = Pruner(model, PruningConfig(**OK, pattern="2:4"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    with pytest.raises(
        PruningError, match="all are frozen, as beside adapters: prune them at once by prune_once before"
    ):
        pruner.attach(optimizer)


def test_a_name_that_finds_the_base_does_not_name_its_adapters(lora):
    _, model = lora()
    for names in (["q_proj", "v_proj"], ["self_attn"], ["^.+$"]):
        layers = Pruner(model, PruningConfig(**OK, pattern="2:4", op_names=names)).layers
        assert not any("lora" in layer.name for layer in layers), names
    layers = Pruner(model, PruningConfig(**OK, pattern="1x1", op_names=["q_proj.lora_A"])).layers
    assert [layer.name.split("self_attn.")[1] for layer in layers] == ["q_proj.lora_A.default"]


def test_a_head_with_an_adapter_and_one_that_is_a_transposed_convolution_stay_dense(lora):
    _, model = lora(target_modules=["q_proj", "lm_head"])
    assert prune_once(model, pattern="2:4").head.endswith("lm_head.base_layer")
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.ConvTranspose2d(8, 4, 2))
    assert prune_once(model, pattern="2:4").head == "1"


def test_a_table_that_shares_memory_but_not_the_parameter_is_left_alone():
    model = Tied()
    model.decoder.weight = nn.Parameter(model.table.weight.detach())
    report = prune_once(model, pattern="2:4")
    assert [row.name for row in report.layers] == ["inner"]
    assert (model.table.weight != 0).all()


class Own(nn.Module):
    """An adapter in the form that keeps the frozen weight itself, or a pair in a Sequential."""

    def __init__(self, in_sequence):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, 8), requires_grad=False)
        pair = nn.Linear(8, 2, bias=False), nn.Linear(2, 12, bias=False)
        if in_sequence:
            self.adapter = nn.Sequential(*pair)
        else:
            self.lora_a, self.lora_b = pair


@pytest.mark.parametrize("in_sequence", [True, False])
def test_other_forms_of_adapters(in_sequence):
    model = nn.Sequential(Own(in_sequence), nn.Linear(12, 12), nn.Linear(12, 2))
    report = prune_once(model, pattern="1x1", target_sparsity=0.5)
    assert [row.name for row in report.layers] == ["1"]
    assert any("is an adapter" in note for note in report.notes)


def test_merging_with_modules_to_save_keeps_the_zeros(lora):
    _, model = lora(modules_to_save=["o_proj"])
    lock = Pruner(model, PruningConfig(pattern="1x1", pruning_type="pattern_lock"))
    lock.apply_masks(model.merge_and_unload())


def test_a_weight_of_complex_numbers_is_one_line():
    model = nn.Sequential(nn.Linear(8, 8, dtype=torch.complex64), nn.Linear(8, 8), nn.Linear(8, 2))
    with pytest.raises(PruningError, match="^0: its weight is torch.complex64, which no score is defined for; add"):
        prune_once(model, pattern="2:4")


def test_many_small_weights_that_no_pattern_fits_are_said_together():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8))

    report = prune_once(nn.Sequential(nn.Linear(8, 8), *(Linear() for _ in range(150)), nn.Linear(8, 2)), pattern="2:4")
    assert report.matmul_gemm_conv == 32 / (151 * 64 + 16)
    assert any("1.weight, 2.weight, 3.weight and 147 more, 99.1% of all weights" in note for note in report.notes)
