"""An embedding's gradient kept in one table is torch's own, whatever the batches and whoever zeroes it."""

import contextlib

import pytest
import torch
from torch import nn

from trisparse.prune.pruner import embedding_gradients
from trisparse.prune.pruner.embedding_gradients import kept_embedding_gradients

WORDS, SIZE = 50, 8


@pytest.fixture(autouse=True)
def _small_tables(monkeypatch):
    monkeypatch.setattr(embedding_gradients, "_LARGE", WORDS * SIZE * 4)


def make_model(**options):
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(WORDS, SIZE, **options), nn.Linear(SIZE, 3))


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, WORDS, (4, 5), generator=generator) for _ in range(count)]


def gradients(model, ids, backwards=1, set_to_none=True):
    """The embedding's gradient at every step, with `backwards` passes a step."""
    found = []
    for step in range(0, len(ids), backwards):
        model.zero_grad(set_to_none)
        for batch in ids[step : step + backwards]:
            model(batch).square().sum().backward()
        assert not model[0].weight.grad.is_sparse
        found.append(model[0].weight.grad.clone())
    return found


@pytest.mark.parametrize("backwards", [1, 3])
@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("options", [{}, {"padding_idx": 0}], ids=["plain", "padding"])
def test_gradients_are_those_of_torch(options, set_to_none, backwards):
    model, ids = make_model(**options), batches(6)
    expected = gradients(model, ids, backwards, set_to_none)
    model.zero_grad()
    with kept_embedding_gradients(model):
        actual = gradients(model, ids, backwards, set_to_none)
    if backwards == 1:
        assert all(map(torch.equal, actual, expected))
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-5)  # up to 200, in fp32


def test_the_table_is_made_once_and_forgets_more_than_one_pass_wrote():
    model, (first, second, third, fourth) = make_model(), batches(4)
    expected = gradients(model, [fourth])[0]
    model.zero_grad()
    with kept_embedding_gradients(model):
        gradients(model, [first])
        table = model[0].weight.grad
        gradients(model, [second, third], backwards=2)
        assert torch.equal(gradients(model, [fourth])[0], expected)
        assert model[0].weight.grad.data_ptr() == table.data_ptr()


def test_a_weight_that_is_a_linear_layers_too():
    model, ids = make_model(), batches(1)[0]
    model.append(nn.Linear(3, SIZE))
    model.append(nn.Linear(SIZE, WORDS, bias=False))
    model[3].weight = model[0].weight
    expected = gradients(model, [ids, ids])
    model.zero_grad()
    with kept_embedding_gradients(model):
        torch.testing.assert_close(gradients(model, [ids, ids]), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("options", [{"scale_grad_by_freq": True}, {"sparse": True}], ids=["by frequency", "sparse"])
def test_other_embeddings_are_left_alone(options):
    model = make_model(**options)
    with kept_embedding_gradients(model):
        assert model[0].sparse == options.get("sparse", False)
        model(batches(1)[0]).sum().backward()
    assert model[0].sparse == options.get("sparse", False)


def test_the_model_is_what_it_was_after_an_error():
    model, ids = make_model(), batches(1)[0]
    with contextlib.suppress(KeyError), kept_embedding_gradients(model):
        assert model[0].sparse
        raise KeyError
    assert not model[0].sparse
    model(ids).sum().backward()
    table = model[0].weight.grad
    model.zero_grad()
    model(ids).sum().backward()
    assert table.equal(model[0].weight.grad)
    assert table.data_ptr() != model[0].weight.grad.data_ptr()


def test_a_run_keeps_them_and_comes_out_the_same(world, monkeypatch, glue, weights):
    pytest.importorskip("transformers")
    tables = []

    class Counted(embedding_gradients._Table):
        def __init__(self):
            super().__init__()
            tables.append(self)

    flags = ["--do_prune", "--pruning_pattern", "4x1", "--max_train_steps", "6", "--cooldown_epochs", "0"]
    monkeypatch.setattr(embedding_gradients, "_Table", Counted)
    glue(world, "dense", "kept", *flags)
    assert any(table.dense is not None for table in tables)
    monkeypatch.setattr(embedding_gradients, "_LARGE", 2**40)
    tables.clear()
    glue(world, "dense", "new", *flags)
    assert not tables
    one, two = weights(world / "kept"), weights(world / "new")
    assert all(torch.equal(one[name], two[name]) for name in one)
