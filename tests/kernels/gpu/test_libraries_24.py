"""The whole 2:4 path over what torch's libraries return and check: probe, pack, product, gradients, checkpoints."""

import importlib
import re

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from trisparse.sparse_ops import Linear24, Linear24Train, mask_24, mm_24, nm_mask, pack_24, repack_24, unpack_24
from trisparse.sparse_ops.two_four import libraries_24
from trisparse.sparse_ops.two_four.layout_24 import find_layout
from trisparse.sparse_ops.two_four.libraries_24 import CUSPARSELT, CUTLASS

CPU = torch.device("cpu")
KINDS = {
    f"{layout}, {dims}-D": (layout, dims) for layout in ("cslt_sm90", "cslt_sm80", "library") for dims in (2, 1)
} | {"cutlass_sm80": ("cutlass_sm80", 2)}


@pytest.fixture
def put_in(cusparselt, cutlass):
    """torch's operators for a layout; the library that calls them."""

    def put(layout, dims):
        if layout == "cutlass_sm80":
            cutlass()
            return CUTLASS
        cusparselt(layout, dims)
        return CUSPARSELT

    return put


@pytest.mark.parametrize(("layout", "dims"), KINDS.values(), ids=KINDS)
def test_the_layout_is_found(put_in, recwarn, layout, dims):
    assert find_layout(put_in(layout, dims), CPU) == layout
    said = [str(warning.message) for warning in recwarn]
    assert len(said) == (layout == "library")
    want = r"order that is not known here \(not cslt_sm90, \d+ of 73728 bytes differ; not cslt_sm80, "
    assert all(re.search(want, line) for line in said)


@pytest.fixture(params=[kind for kind in KINDS if kind not in ("cslt_sm80, 1-D", "library, 1-D")])
def layout(request, kernels_on_cpu, put_in, monkeypatch):
    """A layout with a library that reads it, in all modules that ask for one."""
    layout, dims = KINDS[request.param]
    library = put_in(layout, dims)
    for name in ("libraries_24", "mm_24", "unpack_24"):
        module = importlib.import_module(f"trisparse.sparse_ops.two_four.{name}")
        monkeypatch.setattr(module, "library_for", lambda device: library)
    packing = importlib.import_module("trisparse.sparse_ops.two_four.pack_24")
    monkeypatch.setattr(packing, "check_layout", lambda layout, device: None)
    products = importlib.import_module("trisparse.sparse_ops.two_four.mm_24")
    monkeypatch.setattr(products, "is_seen", lambda *tensors: True)  # so that the dispatcher has its say
    return layout


@pytest.fixture
def multiplied(monkeypatch):
    """The number of rows of every product that a library made."""
    made, real = [], libraries_24.multiply

    def multiply(library, x, *rest):
        made.append(len(x))
        return real(library, x, *rest)

    products = importlib.import_module("trisparse.sparse_ops.two_four.mm_24")
    monkeypatch.setattr(products, "multiply", multiply)
    return made


@pytest.mark.parametrize("tokens", [3, 70])
@pytest.mark.parametrize("transposed", [True, False], ids=["both ways", "one way"])
def test_products_and_gradients(layout, multiplied, transposed, tokens):
    weight, x, bias = (torch.randn(*n).half().requires_grad_() for n in ((72, 196), (tokens, 196), (72,)))
    matrix = pack_24(weight.detach(), layout, transposed=transposed)
    kept = mask_24(matrix)
    dense = weight.detach().where(kept, 0)
    assert torch.equal(unpack_24(matrix), dense)
    out = torch.randn(tokens, 72).half()
    y = mm_24(x, matrix, bias, weight)
    ours = y, *torch.autograd.grad(y, (x, weight, bias), out)
    exact = [t.detach().double().requires_grad_() for t in (x, dense, bias)]
    want = linear(*exact)
    for a, b, only in zip(ours, (want, *torch.autograd.grad(want, exact, out.double())), (1, 1, kept, 1), strict=True):
        torch.testing.assert_close(a.double(), b * only, rtol=2e-3, atol=1e-2)
    if layout == "library" or tokens > 64:  # fewer take a kernel of ours, which can read the known orders
        assert multiplied == [tokens] * (2 if transposed else 1)
    else:
        assert not multiplied


def test_values_written_anew(layout):
    weight = torch.randn(64, 128).half()
    matrix = pack_24(weight, layout, transposed=True)
    repack_24(matrix, weight * 2)
    assert torch.equal(unpack_24(matrix), (weight * 2).where(mask_24(matrix), 0))


def test_checkpoints_go_to_a_machine_without_and_back(layout):
    weight = nn.Linear(128, 72).half()
    infer = Linear24.from_linear(weight, nm_mask(weight.weight.detach(), 2, 4, magnitude=True), layout)
    bare = Linear24.from_linear(nn.Linear(128, 72).half(), torch.zeros(72, 128).bool(), "bitmask")
    bare.load_state_dict(infer.state_dict())
    assert torch.equal(unpack_24(bare.matrix), unpack_24(infer.matrix))
    other = Linear24.from_linear(nn.Linear(128, 72).half(), torch.zeros(72, 128).bool(), layout)
    other.load_state_dict(bare.state_dict())
    assert torch.equal(other.packed, infer.packed)
    train = Linear24Train.from_linear(weight, layout=layout)
    again = Linear24Train.from_linear(nn.Linear(128, 72).half(), layout=layout)
    again.load_state_dict(train.state_dict())
    x = torch.randn(70, 128).half()
    assert torch.equal(again(x), train(x))


@pytest.mark.parametrize(("rows", "cols"), [(64, 192), (8, 12)])
def test_shapes_that_compilers_see(layout, rows, cols):
    ops, half = torch.ops.trisparse, torch.float16
    weight = torch.randn(rows, cols).half()
    packed, packed_t, patterns, *_ = matrix = pack_24(weight, layout, transposed=True)
    x, bias = torch.randn(70, cols).half(), torch.randn(rows).half()
    for op, args in [
        (ops.pack_24, (weight, None, "magnitude", True, layout, half)),
        (ops.repack_24, (packed.clone(), packed_t.clone(), weight, patterns, layout)),
        (ops.unpack_24, (packed, rows, cols, layout)),
        (ops.mm_24, (x, *matrix[:3], None, bias, rows, cols, layout, True)),
    ]:
        torch.library.opcheck(op.default, args, test_utils="test_faketensor")


@pytest.mark.parametrize("dims", [1, 2])
def test_a_library_that_stores_more_of_odd_sides(cusparselt, dims):
    """It would read past what we pack: its own packing then, in multiples of 128."""
    cusparselt("cslt_sm90", dims, surplus=128)
    with pytest.warns(UserWarning, match="not cslt_sm90, a packed 64 x 64 has 4736 bytes, want 4608; not cslt_sm80"):
        assert find_layout(CUSPARSELT, CPU) == "library"


def test_a_library_that_stores_more_of_every_matrix(cusparselt):
    cusparselt("cslt_sm90")._size = lambda rows, cols: rows * cols * 9 // 16 + 64
    with pytest.warns(UserWarning, match="a packed 256 x 256 has 74240 bytes, want 73728; 2:4 goes without it, slower"):
        assert find_layout(CUSPARSELT, CPU) == "bitmask"
