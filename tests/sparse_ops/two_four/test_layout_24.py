"""Finding the layout of a library, with libraries of our own making."""

import pytest
import torch

from trisparse.sparse_ops import pack_24, unpack_24
from trisparse.sparse_ops.two_four import libraries_24
from trisparse.sparse_ops.two_four.layout_24 import find_layout, layout_24
from trisparse.sparse_ops.two_four.libraries_24 import CUSPARSELT, CUTLASS, Library24, missing_arguments, multiply
from trisparse.sparse_ops.two_four.packed_24 import Packed24

CPU = torch.device("cpu")


def library(layout, spoil=lambda packed: packed, multiply=None):
    """A library that packs in a layout, then spoils what it packed; its product knows how to undo that."""

    def compress(dense):
        return spoil(pack_24(dense, layout, mask=dense != 0).packed)

    def product(x, packed, bias, rows):
        matrix = Packed24(spoil(packed), packed[:0], packed[:0], rows, x.shape[1], layout)
        y = x.float() @ unpack_24(matrix).float().t()
        return (y if bias is None else y + bias).to(x.dtype)

    return Library24("a library", ("cslt_sm90", "cslt_sm80"), compress, multiply or product)


def swap_metadata(packed):
    """Exchange two halves of the metadata: as a layout nobody knows. Doing it twice undoes it."""
    values = packed.numel() * 8 // 9
    half = (packed.numel() - values) // 2
    return torch.cat([packed[:values], packed[-half:], packed[values:-half]])


@pytest.mark.parametrize("layout", ["cslt_sm80", "cslt_sm90"])
def test_finds_what_the_library_writes(layout, recwarn):
    assert find_layout(library(layout), CPU) == layout
    assert not recwarn


def test_an_unknown_order_is_left_to_the_library_with_a_warning():
    with pytest.warns(UserWarning, match="a library on cpu writes 2:4 metadata in an order that is not known here"):
        assert find_layout(library("cslt_sm90", swap_metadata), CPU) == "library"


def test_one_wrong_nibble_is_another_order():
    def flip(packed):
        packed = packed.clone()
        packed.view(torch.uint8)[-100] ^= 0b0101
        return packed

    with pytest.warns(UserWarning, match="not known here"):
        assert find_layout(library("cslt_sm90", flip), CPU) == "library"


def test_a_library_that_multiplies_wrongly_is_refused():
    wrong = library("cslt_sm90", multiply=lambda x, packed, bias, rows: torch.zeros(x.shape[0], rows).half())
    with pytest.warns(UserWarning, match="a library on cpu: its products are wrong; 2:4 goes without it"):
        assert find_layout(wrong, CPU) == "bitmask"


def test_a_library_that_fails_is_done_without():
    def fail(dense):
        raise RuntimeError("no such architecture\nand so on")

    broken = library("cslt_sm90")._replace(compress=fail)
    with pytest.warns(UserWarning, match="a library on cpu: no such architecture; 2:4 goes without it, slower"):
        assert find_layout(broken, CPU) == "bitmask"


def test_a_machine_without_a_library():
    assert layout_24("cpu") == "bitmask"


def test_operands_are_padded_to_fit():
    weight, x, bias = torch.randn(70, 100).half(), torch.randn(3, 100).half(), torch.randn(70).half()
    matrix = pack_24(weight, "cslt_sm90")
    seen = {}

    def product(x, packed, bias, rows):
        seen.update(x=list(x.shape), rows=rows)
        return library("cslt_sm90").multiply(x, packed, bias, rows)

    y = multiply(library("cslt_sm90", multiply=product), x, matrix.packed, bias, 70, 100, "cslt_sm90")
    assert seen == {"x": [8, 128], "rows": 128}
    torch.testing.assert_close(y, torch.nn.functional.linear(x, unpack_24(matrix), bias))


def test_torchs_operators_take_what_we_pass(monkeypatch):
    for name in libraries_24._WANTED:
        assert missing_arguments(name) == []
    monkeypatch.setitem(libraries_24._WANTED, "_cslt_sparse_mm", ("compressed_A", "split_k_one_kernel"))
    assert missing_arguments("_cslt_sparse_mm") == ["split_k_one_kernel"]


@pytest.mark.parametrize(("known", "rows"), [(CUSPARSELT, 128), (CUTLASS, 64)])
def test_calls_fit_torchs_schemas(known, rows, monkeypatch):
    called = []
    for name in ("_cslt_sparse_mm", "_sparse_semi_structured_mm", "_sparse_semi_structured_addmm"):
        schema = getattr(torch.ops.aten, name).default._schema

        def fake(*args, schema=schema, **kwargs):
            names = [argument.name for argument in schema.arguments]
            given = dict(zip(names, args, strict=False)) | kwargs
            assert set(given) <= set(names)
            called.append(schema.name)
            return torch.zeros(8, rows).half() if "cslt" in schema.name else torch.zeros(rows, 8).half()

        monkeypatch.setattr(torch, name, fake, raising=False)
    packed = pack_24(torch.randn(rows, 128).half(), known.layouts[0]).packed
    for bias in (None, torch.zeros(rows).half()):
        assert known.multiply(torch.randn(8, 128).half(), packed, bias, rows).shape == (8, rows)
    assert len(called) == 2
