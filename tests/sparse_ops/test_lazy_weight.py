"""What other code reads as the weight of a packed layer: the dense one's values, unpacked no sooner, never written to."""

import copy
import pickle

import numpy
import pytest
import torch
from torch import nn

from trisparse.sparse_ops import Linear24, LinearBlocks, nm_mask
from trisparse.sparse_ops.lazy_weight import LazyWeight


def dense_layer():
    linear = nn.Linear(16, 32)
    linear.weight.data *= nm_mask(linear.weight.data, 2, 4)
    return linear


LAYERS = {"2:4": Linear24.from_linear, "4x1": lambda linear: LinearBlocks.from_linear(linear, (4, 1))}


@pytest.fixture(params=LAYERS)
def pair(request):
    """A dense weight, and the packed layer of it."""
    linear = dense_layer()
    return linear.weight.detach().clone(), LAYERS[request.param](linear)


def test_sizes_and_kinds_are_known_without_unpacking(pair):
    want, layer = pair
    for weight in (layer.weight, layer.weight.data, layer.weight.detach()):
        for name in ("shape", "dtype", "device", "ndim", "nbytes", "itemsize", "is_meta", "is_cuda", "layout"):
            assert getattr(weight, name) == getattr(want, name)
        assert (weight.size(0), weight.numel(), weight.stride(), weight.is_contiguous()) == (32, 512, (16, 1), True)
        assert isinstance(weight, torch.Tensor)
        assert weight._unpacked is None
    assert layer.double().weight.dtype == torch.float64
    assert layer.to("meta").weight.is_meta


def test_nothing_is_unpacked_until_values_are_asked_for():
    weight = LazyWeight(lambda: 1 / 0, torch.empty(4, 8, device="meta"), torch.device("cpu"))
    assert weight.data.detach().dtype == weight.to(torch.float32).dtype == weight.cpu().float().dtype
    with pytest.raises(ZeroDivisionError):
        weight.sum()


READS = {
    "linear": lambda w: nn.functional.linear(torch.eye(16), w).t(),
    "matmul": lambda w: torch.eye(32) @ w,
    "transposed": lambda w: w.T.t(),
    "data": lambda w: w.data * 1,
    "rows": lambda w: torch.cat(torch.split(w, 8)),
    "indexed": lambda w: w[torch.arange(32)],
    "embedding": lambda w: nn.functional.embedding(torch.arange(32), w),
    "reshaped": lambda w: w.reshape(-1).view(32, 16),
    "converted": lambda w: w.to(torch.float64).float(),
    "moved": lambda w: w.cpu().clone(),
    "copied": copy.deepcopy,
    "pickled": lambda w: pickle.loads(pickle.dumps(w)),
    "array": lambda w: torch.tensor(numpy.asarray(w)),
    "list": lambda w: torch.tensor(w.tolist()),
    "shared": torch.from_dlpack,
    "vmap": lambda w: torch.func.vmap(lambda x: nn.functional.linear(x, w))(torch.eye(16)).t(),
    "compiled": lambda w: torch.compile(lambda x: x * 1, backend="aot_eager")(w),
    "pointer": lambda w: w if w.data_ptr() == w.dense.data_ptr() else None,
    "storage": lambda w: torch.tensor([], dtype=w.dtype).set_(w.untyped_storage(), 0, w.shape),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_what_is_read_are_the_values(pair, read):
    want, layer = pair
    got = read(layer.weight)
    assert torch.equal(got, want)
    assert type(got) is torch.Tensor or isinstance(got, LazyWeight)


WRITES = {
    "init": nn.init.normal_,
    "data": lambda w: w.data.fill_(0),
    "assigned": lambda w: setattr(w, "data", torch.zeros(32, 16)),
    "item": lambda w: w.__setitem__((0, 0), 1.0),
    "column": lambda w: w.data[:, 0].mul_(2),
    "transposed": lambda w: w.T.zero_(),
    "chunk": lambda w: w.chunk(2)[1].zero_(),
    "copied": lambda w: w.copy_(torch.zeros(32, 16)),
    "out": lambda w: torch.add(torch.zeros(32, 16), 1, out=w),
    "list": lambda w: torch._foreach_mul_([w], 2),
    "trained": nn.Parameter,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_what_would_be_lost_is_refused(pair, write):
    want, layer = pair
    with pytest.raises(RuntimeError, match=r"^weight: \S+ would be lost, .*decompress\(model\) first, or clone\(\)"):
        write(layer.weight)
    with pytest.raises(ValueError, match="read-only"):
        layer.weight.numpy().fill(0)
    with pytest.raises((AttributeError, KeyError), match="weight"):
        layer.weight = nn.Parameter(want)
    assert torch.equal(layer.weight, want)


def test_gradients_of_the_input_go_through_it(pair):
    want, layer = pair
    x = torch.randn(3, 16, requires_grad=True)
    nn.functional.linear(x, layer.weight).sum().backward()
    torch.testing.assert_close(x.grad, want.sum(0).expand(3, 16))


def test_where_values_are_trained_gradients_reach_them():
    layer = LAYERS["4x1"](dense_layer()).requires_grad_()
    layer.weight.square().sum().backward()
    assert torch.equal(layer.values.grad, 2 * layer.values)
    weight = layer.weight
    assert weight.requires_grad
    for write in (lambda: weight.mul_(2), lambda: weight.data.zero_(), lambda: weight[0].zero_()):
        for mode in (torch.no_grad(), torch.enable_grad()):
            with mode, pytest.raises(RuntimeError, match="would be lost"):
                write()
    compiled = torch.compile(lambda: layer.weight.square().sum(), fullgraph=True, backend="aot_eager")
    layer.values.grad = None
    compiled().backward()
    assert torch.equal(layer.values.grad, 2 * layer.values)


class Reads(nn.Module):
    """As models do: asks for the dtype, and multiplies by the weight itself."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return nn.functional.linear(x.to(self.layer.weight.dtype), self.layer.weight, self.layer.bias)


def test_compiled_and_exported(pair):
    _, layer = pair
    model, x = Reads(layer), torch.randn(3, 16)
    want = layer(x)
    torch.testing.assert_close(model(x), want)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), want)
    for strict in (True, False):
        torch.testing.assert_close(torch.export.export(model, (x,), strict=strict).module()(x), want)
