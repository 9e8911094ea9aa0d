"""Pictures come with channels first; packed convolutions read them with channels last, and so the model computes."""

import pytest
import torch
from torch import nn

from trisparse import compress, decompress, prune_once
from trisparse.prune.deploy import choose_format, conv_layout
from trisparse.sparse_ops import ConvBlocks
from trisparse.sparse_ops.convolutions.packed_convs import is_channels_last

X = torch.randn(2, 16, 9, 7)


class Net(nn.Module):
    """Convolutions, and an end that may count on how their outputs lie."""

    def __init__(self, end):
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.Sequential(
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, groups=16),
            nn.Conv2d(32, 64, 1),
        )  # fmt: skip
        self.end = end
        prune_once(
            self, pattern="4x1", target_sparsity=0.9, pruning_scope="local", pruning_op_types=["Conv"],
            excluded_op_names=["convs.3"], exclude_head=False,
        )  # fmt: skip

    def forward(self, x):
        return self.end(self.convs(x))


def pooled(y):
    return y.mean((2, 3))


@pytest.fixture
def packed_is_faster(monkeypatch):
    monkeypatch.setattr(choose_format, "runs_packed", lambda dtype: True)
    monkeypatch.setattr(choose_format, "time_pair", lambda *_: {"dense_ms": 2.0, "packed_ms": 1.0, "equal": True})
    monkeypatch.setattr(conv_layout, "ratio_in_turns", lambda first, last, *_: 1.0)


def lie_last(model):
    return [is_channels_last(model.convs[i].weight) for i in (0, 3, 4)]


@pytest.mark.parametrize("prefer", ["speed", "memory"])
def test_a_model_computes_with_channels_last(packed_is_faster, prefer):
    model = Net(pooled).eval()
    want = model(X)
    _, report = compress(model, prefer, example=(X,))
    assert [type(model.convs[i]) for i in (0, 3, 4)] == [ConvBlocks, nn.Conv2d, ConvBlocks]
    assert model.convs[0].channels_last
    assert lie_last(model)[1], "what stays dense does not turn them back"
    got = model(X)
    assert got.is_contiguous()
    torch.testing.assert_close(got, want)
    assert is_channels_last(model.convs(X))
    assert "channels stay" not in report.note
    decompress(model)
    torch.testing.assert_close(model(X), want)


@pytest.mark.parametrize(
    ("end", "why"),
    [
        (lambda y: y.view(len(y), -1), "RuntimeError: view size is not compatible"),
        (nn.Identity(), "its outputs are not contiguous"),
        (lambda y: torch.as_strided(y, (2, 3), (1, 2)), "its outputs differ by "),
    ],
)
def test_it_stays_where_something_counts_on_the_order(packed_is_faster, end, why):
    model = Net(end).eval()
    want = model(X)
    _, report = compress(model, example=(X,))
    assert f"channels stay first in memory: with channels last, {why}" in report.note
    assert [type(model.convs[i]) for i in (0, 4)] == [ConvBlocks, ConvBlocks]
    assert not any(lie_last(model))
    torch.testing.assert_close(model(X), want)
    assert model(X).stride() == want.stride()


def test_it_stays_where_the_dense_model_is_slower(packed_is_faster, monkeypatch):
    monkeypatch.setattr(conv_layout, "ratio_in_turns", lambda first, last, *_: (last(), first()) and 0.7)
    model = Net(pooled).eval()
    _, report = compress(model, example=(X,))
    assert "with channels last, it is 0.70 times as fast while dense" in report.note
    assert not any(lie_last(model))


def test_it_stays_where_nothing_is_packed(packed_is_faster, monkeypatch):
    monkeypatch.setattr(choose_format, "time_pair", lambda *_: {"dense_ms": 1.0, "packed_ms": 2.0, "equal": True})
    model = Net(pooled).eval()
    compress(model, example=(X,))
    assert not any(lie_last(model))
    assert type(model.convs[0]) is nn.Conv2d
