"""One-shot pruning on calibration data: Wanda and SparseGPT, against their definitions and against magnitude."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from trisparse import PruningError, prune_once
from trisparse.prune.calibrate import blocks_of
from trisparse.prune.one_shot import prune_one_shot
from trisparse.prune.wanda import keep_of_rows


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
    report = prune_one_shot(model, x.split(64), "wanda", pattern="1x1", target_sparsity=0.5)
    score = weight.abs() * x.norm(dim=0)
    for row, was, now in zip(score, weight, model[0].weight.detach(), strict=True):
        kept = set(row.argsort(descending=True)[:16].tolist())
        assert all(bool(now[j] == (was[j] if j in kept else 0)) for j in range(32))
    assert report.pruned_layers == 0.5
    assert (model[1].weight != 0).all()
    model = layer_and_head()
    prune_one_shot(model, x.split(64), "wanda", pattern="2:4")
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
    report = prune_one_shot(model, x.split(100), "sparsegpt", pattern="2:4")
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
            prune_one_shot(model, x.split(128), method, **keys)
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
            report = prune_one_shot(model, [{"input_ids": part} for part in texts[:200].split(50)], method, **keys)
            assert report.pruned_layers == pytest.approx(keys.get("target_sparsity", 0.75), abs=0.01)
            assert len(report.layers) == 14
            assert model.config.use_cache
        found[method] = perplexity(model, held_out)
    before = perplexity(dense, held_out)
    assert before < 8  # of 32 tokens
    lost = {method: value - before for method, value in found.items()}
    assert 0 < lost["wanda"] < 0.8 * lost["magnitude"]
    assert 0 < lost["sparsegpt"] < 0.8 * lost["magnitude"]


def test_later_blocks_see_what_pruned_blocks_give():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=8, n_positions=32, n_embd=48, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
    )
    model, texts, seen = transformers.GPT2LMHeadModel(config).eval(), torch.randint(8, (20, 32)), []
    second = model.transformer.h[1].attn.c_attn
    second.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    batch = {"input_ids": texts[:20]}
    prune_one_shot(model, [batch], "wanda", pattern="2:4", excluded_op_names=[r"h\.1\."])
    model(**batch)
    before, calibrated, after = seen[0], seen[-2], seen[-1]
    torch.testing.assert_close(calibrated, after)
    assert not torch.allclose(before, after, atol=1e-3)


def test_a_model_without_blocks_is_one_block():
    model = layer_and_head()
    assert [block.module for block in blocks_of(model, [])] == [model]


def test_modules_stay_in_the_mode_they_were_in():
    model = layer_and_head()
    model[0].eval()
    prune_one_shot(model, inputs().split(64), "wanda", pattern="2:4")
    assert [module.training for module in model.modules()] == [True, False, True]


def test_misuse():
    model, x = layer_and_head(), inputs().split(64)
    before = copy.deepcopy(model.state_dict())
    for arguments, keys, message in [
        ((model, x, "obs"), {"pattern": "2:4"}, "method: want wanda or sparsegpt, got 'obs'"),
        ((model, []), {"pattern": "2:4"}, "batches: want at least one batch"),
        ((model, x), {"pattern": "4x1"}, "pattern: want N:M or 1x1 for wanda, got '4x1'"),
        ((model, x), {}, "pattern: want N:M or 1x1 for wanda, got None"),
        ((model, x), {"pattern": "2:4", "target_sparsity": 0.3}, "target_sparsity: want 0.5 for 2:4"),
        ((model, x), {"pattern": "2:4", "start_step": 3}, "start_step: prune_one_shot prunes once"),
        ((model, x), {"pattern": "2:4", "pruning_scope": "global"}, "pruning_scope: prune_one_shot"),
        ((model, x), {"pattern": "2:4", "op_names": ["nothing"]}, "op_names"),
    ]:
        with pytest.raises(PruningError, match=message):
            prune_one_shot(*arguments, **keys)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    with pytest.raises(PruningError, match="0: its inputs were not finite"):
        prune_one_shot(model, [torch.full((4, 32), torch.inf)], "sparsegpt", pattern="2:4")
