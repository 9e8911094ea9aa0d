"""One-shot pruning on calibration data: Wanda and SparseGPT, against their definitions and against magnitude."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from trisparse import prune_once
from trisparse.prune.one_shot.calibrate import blocks_of
from trisparse.prune.one_shot.wanda import Wanda, keep_of_rows


def inputs(count=256, width=32):
    """Correlated features of very different size, as those of language models are."""
    torch.manual_seed(1)
    return (torch.randn(count, 6) @ torch.randn(6, width) + 0.3 * torch.randn(count, width)) * torch.logspace(
        -1, 1, width
    )


def layer_and_head():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 24), nn.Linear(24, 2))


def test_wanda_by_its_definition():
    model, x = layer_and_head(), inputs()
    weight = model[0].weight.detach().clone()
    report = prune_once(model, "wanda", x.split(64), pattern="1x1", target_sparsity=0.5)
    score = weight.abs() * x.norm(dim=0)
    for row, was, now in zip(score, weight, model[0].weight.detach(), strict=True):
        kept = set(row.argsort(descending=True)[:16].tolist())
        assert all(bool(now[j] == (was[j] if j in kept else 0)) for j in range(32))
    assert report.pruned_layers == 0.5
    assert (model[1].weight != 0).all()
    model = layer_and_head()
    prune_once(model, "wanda", x.split(64), pattern="2:4")
    kept = score.view(24, 8, 4).argsort(-1)[..., 2:]
    want = weight.view(24, 8, 4) * torch.zeros(24, 8, 4).scatter(-1, kept, 1)
    assert torch.equal(model[0].weight.detach(), want.view(24, 32))


def test_rows_keep_their_own_best_and_ties_go_low():
    score = torch.tensor([[1.0, 2, 3, 4], [9, 9, 9, 9], [4, 3, 2, 1]])
    assert keep_of_rows(score, 0.5).int().tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]]


def greedy_obs(weight, x, pattern):
    """SparseGPT in fp64, one row and one column at a time, with the Hessian's inverse shrunk by elimination."""
    hessian = x.double().t() @ x.double()
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
    result = weight.double().clone()
    costs, columns = torch.zeros_like(result), len(hessian)
    inverses = [torch.linalg.inv(hessian[j:, j:]) for j in range(columns)]
    for row in result:
        keep = torch.ones(columns, dtype=torch.bool)
        for j in range(columns):
            if j % 4 == 0:
                costs = torch.stack([row[k] ** 2 / inverses[k][0, 0] for k in range(j, j + 4)])
                keep[j : j + 4] = False
                keep[j + costs.argsort(descending=True)[:2]] = True
            if not keep[j]:
                row[j:] -= row[j] / inverses[j][0, 0] * inverses[j][0]
                row[j] = 0
    return result


def test_sparsegpt_equals_its_definition_by_elimination():
    model, x = layer_and_head(), inputs()
    weight = model[0].weight.detach().clone()
    report = prune_once(model, "sparsegpt", x.split(100), pattern="2:4")
    want = greedy_obs(weight, x, "2:4")
    assert torch.equal(model[0].weight == 0, want == 0)
    torch.testing.assert_close(model[0].weight.detach().double(), want, rtol=1e-3, atol=1e-4)
    assert report.pruned_layers == 0.5
    assert report.pattern_verified


@pytest.mark.parametrize(
    "keys", [{"pattern": "2:4"}, {"pattern": "1x1", "target_sparsity": 0.6}, {"pattern": "4:8"}], ids=str
)
def test_outputs_change_less_the_more_a_method_knows(keys):
    x = inputs(512)
    errors = []
    for method in (None, "wanda", "sparsegpt"):
        model = layer_and_head()
        want = model[0](x)
        if method is None:
            prune_once(model, **keys)
        else:
            prune_once(model, method, x.split(128), **keys)
        errors.append((model[0](x) - want).square().mean().item())
    assert errors[2] < 0.9 * errors[1]
    assert errors[1] < 0.9 * errors[0]


@pytest.fixture(scope="module")
def language_model():
    """A small Llama trained on a Markov chain; and texts of it that it has not seen."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(2)
    chain = torch.softmax(torch.randn(32, 32) * 2.5, -1)
    texts = torch.randint(32, (4000, 1))
    for _ in range(31):
        texts = torch.cat([texts, torch.multinomial(chain[texts[:, -1]], 1)], 1)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=48, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0)
    for _ in range(200):
        batch = texts[600 + torch.randint(3400, (64,))]
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), texts[:600]


def perplexity(model, texts):
    with torch.no_grad():
        logits = model(input_ids=texts).logits
    return float(cross_entropy(logits[:, 1:-1].flatten(0, 1), texts[:, 2:].flatten()).exp())


@pytest.mark.parametrize("keys", [{"pattern": "1:4"}, {"pattern": "1x1", "target_sparsity": 0.8}], ids=str)
def test_a_language_model_suffers_less_than_by_magnitude(language_model, keys):
    dense, texts = language_model
    held_out, found = texts[500:], {}
    for method in ("magnitude", "wanda", "sparsegpt"):
        model = copy.deepcopy(dense)
        if method == "magnitude":
            prune_once(model, **keys, pruning_scope="local")
        else:
            report = prune_once(model, method, [{"input_ids": part} for part in texts[:200].split(50)], **keys)
            assert report.pruned_layers == pytest.approx(keys.get("target_sparsity", 0.75), abs=0.01)
            assert len(report.layers) == 14
            assert model.config.use_cache
        found[method] = perplexity(model, held_out)
    before = perplexity(dense, held_out)
    assert before < 8  # of 32 tokens
    lost = {method: value - before for method, value in found.items()}
    assert 0 < lost["wanda"] < 0.8 * lost["magnitude"]
    assert 0 < lost["sparsegpt"] < 0.8 * lost["magnitude"]


class Blocks(nn.Module):
    """Three blocks of one layer each, between which the forward does more, in a list or without one."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(3)
        self.kind = kind
        layers = [nn.Linear(32, 32) for _ in range(3)]
        self.blocks = nn.Sequential(*layers) if kind == "sequential" else nn.ModuleList(layers)
        self.head = nn.Linear(32, 2)

    def forward(self, x):
        x *= 2  # in place, on what the caller gave
        for block in reversed(self.blocks) if self.kind == "reversed" else self.blocks:
            x = x.add_(block(x)) if self.kind == "in place" else x + block(x=x) if self.kind == "keyword" else block(x)
            x = x.relu()
        return self.head(x)


class ByKeyword(nn.Linear):
    def forward(self, x):
        return super().forward(x)


def compiled(model):
    """In place, and run, so that dynamo knows it without hooks."""
    model.eval().compile(backend="eager")
    with torch.no_grad():
        model(inputs(64))
    return model


@pytest.mark.parametrize("kind", ["plain", "reversed", "in place", "keyword", "sequential"])
@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel, torch.compile, compiled])
def test_every_layer_is_calibrated_on_what_pruned_layers_before_it_give(kind, wrap, monkeypatch):
    model, x, told = Blocks(kind), inputs(), []
    if kind == "keyword":
        for i, layer in enumerate(model.blocks):
            model.blocks[i] = ByKeyword(32, 32).requires_grad_(False)
            model.blocks[i].load_state_dict(layer.state_dict())
    squares, original = {}, Wanda.see

    def see(self, layer, x):
        original(self, layer, x)
        squares[layer.name] = self._squares[layer.name]

    monkeypatch.setattr(Wanda, "see", see)
    prune_once(wrap(model), "wanda", x.split(64), pattern="2:4", progress=told.append)
    assert torch.equal(x, inputs())
    found = {}
    for name, module in model.blocks.named_children():
        module.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: found.update({name: [*args, *kwargs.values()][0].square().sum(0)}),
            with_kwargs=True,
        )
    with torch.compiler.set_stance("force_eager"):  # compiled code may not know of the hooks
        model(x.clone())
    assert list(found) == (["2", "1", "0"] if kind == "reversed" else ["0", "1", "2"])
    for name, want in found.items():
        torch.testing.assert_close(squares[f"blocks.{name}"], want)
        assert (model.blocks[int(name)].weight == 0).float().mean() == 0.5
    assert told == ["a first look at 4 batches", "block 1 of 3", "block 2 of 3", "block 3 of 3"]


@pytest.mark.parametrize("use_cache", [False, True])
def test_keys_and_values_of_earlier_passes_do_not_count(use_cache):
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=20, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_decoder_layers=2, num_heads=2,
        decoder_start_token_id=0, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(config).eval()
    batch = {"input_ids": torch.randint(20, (4, 12)), "decoder_input_ids": torch.randint(20, (4, 5))}
    weights = []
    for more in ({"use_cache": use_cache}, {"use_cache": False}):
        pruned = copy.deepcopy(model)
        report = prune_once(pruned, "sparsegpt", [batch | more], pattern="2:4", op_names=["decoder"])
        assert len(report.layers) == 2 * (4 + 4 + 2)
        weights.append(pruned.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(weights[0].values(), weights[1].values(), strict=True))


def test_padding_does_not_count():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    torch.manual_seed(0)
    model, ids = transformers.BertModel(config).eval(), torch.randint(1, 20, (4, 6))
    padded = torch.nn.functional.pad(ids, (0, 3))
    batches = ({"input_ids": ids}, {"input_ids": padded, "attention_mask": (padded > 0).long()})
    masks = []
    for batch in batches:
        pruned = copy.deepcopy(model)
        prune_once(pruned, "wanda", [batch], pattern="2:4", op_names=["encoder"])
        masks.append([p != 0 for p in pruned.encoder.parameters() if p.dim() == 2])
    same = [(a == b).float().mean() for a, b in zip(*masks, strict=True)]
    assert min(same) > 0.999, "padding changes the last bits of a product"


def published(weight, x):
    """SparseGPT at 1x1 and 0.5 on a layer of one block of columns, after IST-DASLab's `sparsegpt.py`, in fp64."""
    weight, hessian = weight.double().clone(), x.double().t() @ x.double()
    dead = hessian.diagonal() == 0
    hessian[dead, dead] = 1
    weight[:, dead] = 0
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    cost = weight**2 / factor.diagonal() ** 2
    gone = cost <= cost.flatten().sort().values[cost.numel() // 2]
    for j in range(len(hessian)):
        error = weight[:, j].where(gone[:, j], 0) / factor[j, j]
        weight[:, j:] -= error[:, None] * factor[None, j, j:]
        weight[gone[:, j], j] = 0
    return weight


@pytest.mark.parametrize("scale", [1.0, 0.01])
@pytest.mark.parametrize("every", [2, 8])
def test_inputs_that_are_always_zero_cost_nothing(every, scale):
    model, x = layer_and_head(), inputs(512) * scale
    x[:, ::every] = 0
    dense = model[0].weight.detach().clone()
    report = prune_once(model, "sparsegpt", [x], pattern="1x1", target_sparsity=0.5)
    assert report.pruned_layers == 0.5
    error, allowed = ((x.double() @ (w.double() - dense).t()).norm() for w in (model[0].weight, published(dense, x)))
    assert error < 1.02 * allowed
    model = layer_and_head()
    prune_once(model, "sparsegpt", [x * (torch.arange(32) % 4 < 2)], pattern="2:4")
    assert torch.equal(model[0].weight[:, torch.arange(32) % 4 < 2], dense[:, torch.arange(32) % 4 < 2])


def test_one_sparsity_for_every_layer_is_the_local_scope():
    keys = {"pattern": "4x1", "target_sparsity": 0.7}
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Flatten(), nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 2))
    other = copy.deepcopy(model)
    report = prune_once(model, layer_sparsity=[0.7] * 3, pattern="4x1")
    assert report.to_dict() == prune_once(other, pruning_scope="local", **keys).to_dict()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert (model[0].weight == 0).any()


def test_dampening_by_hand():
    # x = (1, 1) and (1, 0): H = [[2, 1], [1, 1]], mean of its diagonal 1.5; with dampening 2/3 it is [[3, 1], [1, 2]],
    # H^-1 = [[2, -1], [-1, 3]] / 5. w = (1, 4): costs 1 / (2/5) = 2.5 and, once the first is gone, 16 / (1/2) = 32. So
    # the first goes, and the second becomes 4 - 1 / (2/5) * (-1/5) = 4.5.
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 4]]))
    x = torch.tensor([[1.0, 1], [1, 0]])
    prune_once(model, "sparsegpt", [x], pattern="1x1", target_sparsity=0.5, dampening=2 / 3)
    torch.testing.assert_close(model[0].weight.detach(), torch.tensor([[0, 4.5]]))


def test_a_block_of_columns_is_chosen_from_together():
    shares = []
    for size in (8, 128):
        model = layer_and_head()
        x = torch.eye(32) * torch.logspace(-1, 1, 32)  # the last columns cost most
        prune_once(model, "sparsegpt", [x], pattern="1x1", target_sparsity=0.5, block_size=size)
        shares.append([float((part == 0).float().mean()) for part in model[0].weight.split(8, 1)])
    assert shares[0] == [0.5] * 4
    assert shares[1] == sorted(shares[1], reverse=True)
    assert shares[1][0] > 0.9


def test_blocks_are_elements_of_the_outermost_list():
    inner = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]), "gate": nn.Linear(4, 4)})
    model = nn.ModuleDict({"blocks": nn.ModuleList([inner, nn.Linear(4, 4)]), "out": nn.Linear(4, 4)})
    layers = [SimpleNamespace(name=n, module=m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    found = [(block.module, [layer.name for layer in block.layers]) for block in blocks_of(model, layers)]
    names = [f"blocks.0.{name}" for name in ("experts.0", "experts.1", "gate")]
    assert found == [(inner, names), (model.blocks[1], ["blocks.1"]), (model.out, ["out"])]


def test_modules_stay_in_the_mode_they_were_in():
    model = layer_and_head()
    model[0].eval()
    prune_once(model, "wanda", inputs().split(64), pattern="2:4")
    assert [module.training for module in model.modules()] == [True, False, True]
