"""Outputs before and after a change: what counts as different, and a model that is put back as it was."""

import copy

import pytest
import torch
from torch import nn

from trisparse import PruningError, compact, compress, decompress
from trisparse.prune.channels.same_outputs import difference, outputs_of
from trisparse.prune.deploy.layer_spec import describe

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("before", "after", "dtype", "same"),
    [
        ([1.0, NAN], [1.0, NAN], torch.float32, True),
        ([1.0, 2.0], [1.0, NAN], torch.float32, False),
        ([NAN, 2.0], [1.0, 2.0], torch.float32, False),
        ([INF, -INF, 1.0], [INF, -INF, 1.0], torch.float32, True),
        ([INF, 1.0], [-INF, 1.0], torch.float32, False),
        ([INF, 1.0], [INF, 1.1], torch.float32, False),
        ([100.0, 1.0], [100.0, 1.009], torch.float32, True),
        ([100.0, 1.0], [100.0, 1.011], torch.float32, False),
        ([0.02, 0.0], [0.0201, 0.0], torch.float32, False),
        ([0.02, 0.0], [0.0200001, 0.0], torch.float32, True),
        ([0.0], [1e-7], torch.float32, True),
        ([0.02], [0.049], torch.bfloat16, False),
        ([0.02], [0.0201], torch.bfloat16, True),
        ([1.0], [1.0 + 1e-8], torch.float64, False),
        ([1.0], [1.0 + 1e-10], torch.float64, True),
        ([1.0], [1.0, 1.0], torch.float32, False),
        ([], [], torch.float32, True),
    ],
)
def test_difference(before, after, dtype, same):
    a, b = ([torch.tensor(values, dtype=dtype)] for values in (before, after))
    assert (difference(a, b) == "") == same
    assert difference(a, []) != ""


def test_rounded_products_are_allowed_their_rounding():
    before, near, far = ([torch.tensor([1.0, value])] for value in (0.5, 0.502, 0.54))
    assert difference(before, near) != ""
    torch.set_float32_matmul_precision("high")
    try:
        assert difference(before, near) == ""
        assert difference(before, far) != ""
    finally:
        torch.set_float32_matmul_precision("highest")


class Block(nn.Module):
    """A feed-forward block that does something else once it is smaller."""

    def __init__(self, otherwise):
        super().__init__()
        self.lin1, self.lin2, self.activation = nn.Linear(8, 16), nn.Linear(16, 8), nn.ReLU()
        self.otherwise = otherwise
        self.lin1.weight.data[:8] = 0

    def forward(self, x):
        y = self.lin2(self.activation(self.lin1(x)))
        return y if self.lin1.out_features == 16 else self.otherwise(y)


def interrupt(_):
    raise KeyboardInterrupt


def refuse(_):
    raise AssertionError("want 16\nand more")


@pytest.mark.parametrize(
    ("otherwise", "reason"),
    [
        (refuse, "AssertionError: want 16 and more"),
        (lambda y: y * NAN, "its outputs differ by nan"),
        (lambda y: y[:1], "its outputs were [[2, 8]] and are [[1, 8]]"),
        (lambda y: None, "its outputs were [[2, 8]] and are []"),
        (interrupt, None),
    ],
)
def test_the_model_is_put_back_exactly(otherwise, reason):
    model = nn.Sequential(nn.Linear(8, 8), Block(otherwise))
    before = [{**vars(m), "_parameters": dict(m._parameters)} for m in model.modules()]
    if reason is None:
        with pytest.raises(KeyboardInterrupt):
            compact(model, example=(torch.randn(2, 8),))
    else:
        row = compact(model, example=(torch.randn(2, 8),)).chains[1]
        assert row.reason.startswith(f"stays: the model fails without its zero channels ({reason}")
        assert row.kept == row.units == 16
    assert [vars(m) for m in model.modules()] == before
    assert describe(model)["layers"] == {}  # nothing of it gets into a checkpoint


def test_channels_that_can_go_one_by_one_but_not_together_all_stay():
    class Either(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Block(nn.Identity()), Block(nn.Identity())

        def forward(self, x):
            y = self.second(self.first(x))
            return y if self.first.lin1.out_features + self.second.lin1.out_features > 16 else y[:1]

    model = Either()
    before = [{**vars(m), "_parameters": dict(m._parameters)} for m in model.modules()]
    with pytest.raises(PruningError, match=r"^model: fails without its zero channels \(its outputs were .* as it was"):
        compact(model, example=(torch.randn(2, 8),))
    assert [vars(m) for m in model.modules()] == before


class Otherwise(nn.Module):
    """Named like a feed-forward block, but not one."""

    def __init__(self):
        super().__init__()
        self.lin1, self.lin2, self.activation = nn.Linear(8, 16), nn.Linear(16, 8), nn.ReLU()

    def forward(self, x):
        hidden = self.activation(self.lin1(x))
        return self.lin2(hidden / (1 + hidden.sum(-1, keepdim=True)))


def test_a_model_that_only_looks_like_one_is_not_taken_for_one():
    model = Otherwise()
    model.lin1.weight.data[::2] = 0
    model.lin1.bias.data.fill_(1.0)
    before, x = copy.deepcopy(model.state_dict()), torch.randn(3, 8)
    want = model(x)
    report = compact(model, (x,))
    assert report.chains == []
    assert report.reasons == {"lin1": "a sum over them in the model (Otherwise) reads them"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(x), want)


class Fixed(Otherwise):
    """Knows how many channels it has."""

    def forward(self, x):
        return self.lin2(self.activation(self.lin1(x)).view(-1, 16))


def test_a_model_that_needs_its_channels_is_left_as_it_was():
    model, x = Fixed(), torch.randn(3, 8)
    model.lin1.weight.data[::2] = 0
    want = model(x)
    (row,) = compact(model, (x,)).chains
    assert row.reason.startswith("stays: the model fails without its zero channels (RuntimeError: shape")
    assert torch.equal(model(x), want)


class Halves(nn.Module):
    """Splits what one layer makes into two parts of a size that it knows."""

    def __init__(self):
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(8, 32), nn.Linear(16, 8)

    def forward(self, x):
        first, gate = torch.split(self.lin1(x), [16, 16], dim=-1)
        return self.lin2(first * gate)


def test_only_channels_that_the_model_needs_stay():
    model, x = nn.Sequential(Otherwise(), Halves(), Block(nn.Identity()), Halves()), torch.randn(3, 8)
    for layer in (model[0], model[1], model[3]):
        layer.lin1.weight.data[:] = torch.randn(len(layer.lin1.weight), 8)
    for layer in (model[1], model[3]):
        for part in layer.lin1.weight.data.split(16):
            part[:8] = 0
    model[2].lin1.bias.data.fill_(1.0)  # which goes into the next bias
    want = model(x)
    report = compact(model, (x,))
    torch.testing.assert_close(model(x), want)
    assert [layer.lin1.out_features for layer in model] == [16, 32, 8, 32]
    reasons = {row.producers[0]: row.reason for row in report.chains}
    assert reasons["2.lin1"] == ""
    for name in ("1.lin1", "3.lin1"):
        assert reasons[name].startswith("stays: the model fails without its zero channels (RuntimeError: split_with_")
    assert report.verified


def test_compress_goes_on_without_channels_and_says_why():
    model = nn.Sequential(Block(refuse), nn.Linear(8, 8))
    _, report = compress(model, prefer="memory", measure=False, example=(torch.randn(2, 8),))
    assert report.note.startswith(
        "channels of 0.lin1: stays: the model fails without its zero channels (AssertionError"
    )
    assert report.note in str(report)
    assert report.to_dict()["note"] == report.note
    assert model[0].lin1.out_features == 16
    assert len(report.layers) == 3


def test_a_size_that_stayed_is_no_note_for_a_checkpoint():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model[0].full_shape = (8, 8)
    weight = model[0].weight
    decompress(model)
    assert describe(model)["layers"] == {}
    assert torch.equal(model[0].weight, weight)


def test_every_module_keeps_its_own_mode():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)).train()
    model[3].eval()
    model[0].weight.data[:8] = 0
    modes = [m.training for m in model.modules()]
    compact(model, example=(torch.randn(2, 8),))
    assert [m.training for m in model.modules()] == modes
    compress(model, prefer="memory", measure=False, example=(torch.randn(2, 8),))
    assert [m.training for m in model.modules()] == modes
    with pytest.raises(TypeError):
        outputs_of(model, {"nothing": 1})
    assert [m.training for m in model.modules()] == modes


class Pictures(nn.Module):
    """Says of itself that it takes what it does not take, as ViT does."""

    dummy_inputs = {"ids": torch.zeros(2, 8)}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.block, self.head = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)), nn.Linear(8, 64)

    def forward(self, pictures):
        return self.head(self.block(pictures))


def test_an_example_is_run_only_where_something_can_go():
    model, x = Pictures(), torch.randn(2, 8)
    assert compact(model).chains[0].removable == 0
    assert compress(model)[1].note == ""
    model.block[0].weight.data[:8] = 0
    want = model(x)
    with pytest.raises(
        PruningError, match=r"^example: the model does not run on it .TypeError: .*remove_channels=False"
    ):
        compact(model)
    _, report = compress(model)
    assert report.note.startswith("all channels stay: example: the model does not run on it (TypeError")
    assert model.block[0].out_features == 16
    _, report = compress(model, example=(x,))
    assert report.channels.verified
    assert model.block[0].out_features == 8
    torch.testing.assert_close(model(x), want)


@pytest.mark.parametrize("example", [torch.zeros(2, 8), "text", 3])
def test_an_example_is_a_dict_or_a_tuple(example):
    for how in (compact, compress):
        with pytest.raises(PruningError, match="^example: want a dict of keywords or a tuple of positions, got "):
            how(Pictures(), example=example)
