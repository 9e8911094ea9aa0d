"""Weights that no Linear or Conv holds are pruned too: attention's, recurrent layers', transposed convolutions', experts'."""

import pytest
import torch
from torch import nn

from trisparse import MaskedAdamW, Pruner, PruningConfig, PruningError, prune_once
from trisparse.prune.layers.census import count_parameters, unprunable_notes
from trisparse.prune.layers.weights import experts_of, named_weights


class Experts(nn.Module):
    """Experts of a gated feed-forward in one parameter, as transformers has them; `is_transposed` as gpt-oss has them."""

    def __init__(self, count=2, outer=8, inner=16, is_transposed=False):
        super().__init__()
        shapes = (count, 2 * inner, outer), (count, outer, inner)
        if is_transposed:
            shapes = tuple((e, b, a) for e, a, b in shapes)
        self.gate_up_proj, self.down_proj = (nn.Parameter(torch.randn(shape) / 4) for shape in shapes)
        self.flip = not is_transposed

    def forward(self, x):
        for gate_up, down in zip(self.gate_up_proj, self.down_proj, strict=True):
            gate_up, down = (gate_up.t(), down.t()) if self.flip else (gate_up, down)
            gate, up = (x @ gate_up).chunk(2, dim=-1)
            x = x + (gate.relu() * up) @ down
        return x


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose1d(4, 8, 2)
        self.attention = nn.MultiheadAttention(8, 2, kdim=4, vdim=4, batch_first=True)
        self.lstm = nn.LSTM(8, 8, batch_first=True, proj_size=4)
        self.cell = nn.GRUCell(4, 8)
        self.experts = Experts()
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.up(x).transpose(1, 2)  # [batch, tokens, 8]
        x, _ = self.attention(x, x[..., :4], x[..., :4])
        x, _ = self.lstm(x)
        return self.head(self.experts(self.cell(x[:, -1])))


NAMES = [
    "up", "attention.q_proj_weight", "attention.k_proj_weight", "attention.v_proj_weight", "attention.out_proj",
    "lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.weight_hr_l0", "cell.weight_ih", "cell.weight_hh",
    "experts.gate_up_proj.0", "experts.gate_up_proj.1", "experts.down_proj.0", "experts.down_proj.1",
]  # fmt: skip


def own(model, name):
    """The values that a mask of this name belongs to."""
    *path, last = name.split(".")
    if last.isdigit():
        return own(model, ".".join(path))[int(last)]
    found = getattr(model.get_submodule(".".join(path)), last)
    return found.weight if isinstance(found, nn.Module) else found


@pytest.mark.parametrize("pattern", ["2:4", "4x1", "1xchannel", "channelx1", "1x1"])
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, MaskedAdamW])
def test_all_are_pruned_while_training(pattern, optimizer):
    torch.manual_seed(0)
    model = Everything()
    pruner = Pruner(model, PruningConfig(pattern=pattern, target_sparsity=0.5, start_step=1, end_step=3))
    assert [layer.name for layer in pruner.layers] == NAMES
    with pruner.attach(optimizer(model.parameters(), lr=1e-2)) as handle:
        for _ in range(4):
            model(torch.randn(3, 4, 5)).square().mean().backward()
            handle._optimizer.step()
            handle._optimizer.zero_grad()
    report = pruner.report()
    assert report.pruned_layers == pytest.approx(0.5, abs=0.02)
    assert report.pattern_verified
    for name, mask in pruner.masks().items():
        values = own(model, name)
        assert mask.shape == values.shape
        assert (values != 0).equal(mask), name


def test_masked_adamw_steps_experts_as_adamw_does():
    results = []
    for optimizer in (torch.optim.AdamW, MaskedAdamW):
        torch.manual_seed(0)
        model = nn.Sequential(Experts(), nn.Linear(8, 2))
        pruner = Pruner(model, PruningConfig(pattern="2:4", start_step=1, end_step=2))
        adamw = optimizer(model.parameters(), lr=1e-2)
        with pruner.attach(adamw):
            for _ in range(3):
                model(torch.ones(3, 8)).square().mean().backward()
                adamw.step()
                adamw.zero_grad()
        results.append([p.detach() for p in model.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_masked_adamw_refuses_a_parameter_that_is_pruned_in_part():
    model = nn.Sequential(Experts(), nn.Linear(8, 2))
    config = PruningConfig(pattern="2:4", start_step=1, end_step=2, op_names=[r"gate_up_proj\.1"])
    with pytest.raises(
        PruningError, match=r"attach: 0.gate_up_proj.1 is pruned and other parts of its parameter are not"
    ):
        Pruner(model, config).attach(MaskedAdamW(model.parameters()))


def test_a_state_of_them_resumes():
    def start():
        torch.manual_seed(0)
        model = nn.Sequential(Experts(), nn.Linear(8, 2))
        return model, Pruner(model, PruningConfig(pattern="4x1", target_sparsity=0.5, start_step=1, end_step=6))

    def step(model, pruner, numbers):
        adamw = torch.optim.SGD(model.parameters(), lr=1e-2)
        with pruner.attach(adamw):
            for number in numbers:
                model(torch.randn(3, 8, generator=torch.Generator().manual_seed(number))).square().mean().backward()
                adamw.step()
                adamw.zero_grad()

    whole, pruner = start()
    step(whole, pruner, range(6))
    half, first = start()
    step(half, first, range(3))
    other, second = start()
    other.load_state_dict(half.state_dict())
    second.load_state_dict(first.state_dict())
    step(other, second, range(3, 6))
    assert all(a.equal(b) for a, b in zip(whole.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("is_transposed", [False, True])
def test_units_of_an_expert_lie_along_its_inputs(is_transposed):
    experts = Experts(is_transposed=is_transposed)
    assert set(experts_of(experts).values()) == {"transposed" if is_transposed else "linear"}
    prune_once(nn.Sequential(experts, nn.Linear(8, 2)), pattern="2:4")
    for stack in (experts.gate_up_proj, experts.down_proj):
        inputs_last = stack.transpose(1, 2) if is_transposed else stack
        assert ((inputs_last != 0).unflatten(-1, (-1, 4)).sum(-1) == 2).all()


def test_a_stack_whose_layout_is_not_known_is_named_and_counted():
    class Stack(nn.Module):
        def __init__(self, *shapes, **said):
            super().__init__()
            for name, shape in zip(("up_proj", "down_proj"), shapes, strict=False):
                setattr(self, name, nn.Parameter(torch.randn(shape)))
            vars(self).update(said)

    ungated = (2, 16, 8), (2, 8, 16)  # as good [in, out] as [out, in]
    assert experts_of(Stack(*ungated)) == {}
    assert experts_of(Stack(*ungated, is_transposed=False)) == {"up_proj": "linear", "down_proj": "linear"}
    assert experts_of(Stack(*ungated, is_transposed=True)) == {"up_proj": "transposed", "down_proj": "transposed"}
    sizes = Stack(in_features=8, out_features=16)
    for shape, layout in (((2, 16, 8), "linear"), ((2, 8, 16), "transposed"), ((2, 8, 8), None)):
        sizes.weight = nn.Parameter(torch.randn(shape))
        assert experts_of(sizes).get("weight") == layout
    model = nn.Sequential(nn.Linear(8, 8), Stack(*ungated), nn.Linear(8, 2))
    report = prune_once(model, pattern="2:4")
    assert report.matmul_gemm_conv == 32 / (64 + 512 + 16)
    assert "dense: 1.up_proj, 1.down_proj, 85.0% of all weights: no kind of weight that can be pruned" in report.notes


def test_what_multiplies_is_counted_and_what_is_looked_up_is_named():
    model = nn.Sequential(
        nn.Embedding(10, 8), nn.GRU(8, 8), nn.Bilinear(4, 4, 2), nn.ConvTranspose1d(4, 4, 2, groups=2)
    )
    assert count_parameters(model).matmul == 2 * 24 * 8 + 32 + 16
    (embeddings, others) = unprunable_notes(model)
    assert embeddings.startswith("dense: 0.weight, 14.")
    assert embeddings.endswith("embeddings, which are looked up and not multiplied")
    assert others.startswith("dense: 2.weight, 3.weight, ")


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("MixtralForCausalLM", {"num_local_experts": 2}),
        ("Qwen3MoeForCausalLM", {"num_experts": 2, "moe_intermediate_size": 32, "head_dim": 8}),
        ("GptOssForCausalLM", {"num_local_experts": 2, "head_dim": 8}),
        ("OlmoeForCausalLM", {"num_experts": 2}),
    ],
)  # fmt: skip
def test_experts_of_transformers_are_found_with_their_layout(kind, config):
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, kind)
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_experts_per_tok": 1}
    model = kind(kind.config_class(**sizes, **heads, **config)).eval()
    found = [weight for weight in named_weights(model) if weight.part is not None]
    assert {weight.parameter for weight in found} == {"gate_up_proj", "down_proj"}
    for weight in found:  # the output has as many rows as what it is added to or split from, the input as many columns
        stack = weight.tensor if weight.layout == "linear" else weight.tensor.transpose(1, 2)
        assert stack.shape[1:] == ((64, 16) if "up" in weight.parameter else (16, 32)), weight.name
