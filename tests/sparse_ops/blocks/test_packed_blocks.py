"""The format of vectors and blocks: a worked example, there and back, what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trisparse.sparse_ops import PackedBlocks, check_blocks, pack_blocks, unpack_blocks
from trisparse.sparse_ops.blocks.group_rows import group_rows
from trisparse.sparse_ops.blocks.packed_blocks import HEIGHTS, SIDES, STEP

BLOCKS = [(n, 1) for n in HEIGHTS] + [(n, n) for n in SIDES] + [(16, 64)]


def matrix_of(rows, cols, block, run=None, density=0.3, dtype=torch.float32):
    n, m = run or block[0], block[1]
    kept = torch.rand(-(-rows // n), -(-cols // m)) < density
    return (torch.randn(rows, cols) * kept.repeat_interleave(n, 0).repeat_interleave(m, 1)[:rows, :cols]).to(dtype)


def test_the_documented_example():
    weight = torch.tensor([[0, 0, 5, 0], [1, 0, 0, 2], [0, 0, 6, 0], [3, 0, 0, 4.0]])
    packed = pack_blocks(weight, (2, 1), run=1)
    assert packed.order.tolist() == [1, 3, 0, 2]
    assert packed.pointers.tolist() == [0, 2, 3]
    assert packed.columns.tolist() == [0, 3, 2]
    assert packed.values[..., 0].tolist() == [[1, 3], [2, 4], [5, 6]]
    assert packed.longest == 2
    assert len(pack_blocks(weight, (2, 1)).columns) == 6


def test_slots_for_tensor_cores_are_filled_up():
    weight = torch.tensor([[0, 0, 5, 0], [1, 0, 0, 2], [0, 0, 6, 0], [3, 0, 0, 4.0]])
    packed = pack_blocks(weight.repeat_interleave(2, 0), (4, 1), run=2)
    assert packed.pointers.tolist() == [0, STEP, 2 * STEP]
    assert packed.columns.tolist() == [0, 3, *[-1] * (STEP - 2), 2, *[-1] * (STEP - 1)]
    assert packed.longest == STEP


def test_an_example_of_blocks():
    weight = torch.zeros(48, 64)
    weight[16:32, 16:48] = 1
    weight[40, 63] = 7
    packed = pack_blocks(weight, (16, 16), transposed=True)
    assert packed.order.tolist() == [1, 2, 0]  # longest first
    assert packed.pointers.tolist() == [0, 2, 3, 3]
    assert packed.columns.tolist() == [1, 2, 3]
    assert packed.slots_t.tolist() == [0, 1, 2]
    assert packed.groups_t.tolist() == [0, 0, 1]
    assert packed.pointers_t.tolist() == [0, 0, 1, 2, 3]
    assert packed.values[2, 8, 15] == 7
    assert packed.nbytes == 3 * 256 * 4 + 3 * 2 + (3 + 4 + 3 + 3 + 5) * 4


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(BLOCKS), st.integers(0, 70), st.integers(0, 70), st.sampled_from([0, 0.1, 1]), st.randoms())
def test_there_and_back(block, rows, cols, density, random):
    torch.manual_seed(random.randint(0, 1 << 30))
    weight = matrix_of(rows, cols, block, density=density)
    run = random.choice([run for run in (1, 2, 4) if block[0] % run == 0]) if block[1] == 1 else None
    packed = pack_blocks(weight, block, run=run, transposed=True)
    check_blocks(packed)
    assert torch.equal(unpack_blocks(packed), weight)
    n, m = block
    stored = int((packed.columns >= 0).sum())
    assert stored <= (torch.nn.functional.pad(weight, (0, -cols % m, 0, -rows % n)) != 0).sum()
    assert len(packed.slots_t) == stored == packed.pointers_t[-1]
    column = packed.columns[packed.slots_t.long()]
    assert torch.equal(column, column.sort().values)
    assert bool((packed.pointers.diff()[:-1] >= packed.pointers.diff()[1:]).all())


def test_special_values_stay():
    weight = torch.tensor([[float("nan"), 0, -float("inf"), 0]]).repeat(4, 1)
    assert torch.equal(unpack_blocks(pack_blocks(weight, (4, 1))).isnan(), weight.isnan())
    assert torch.equal(unpack_blocks(pack_blocks(weight, (4, 1)))[:, 1:], weight[:, 1:])


def test_wide_matrices_have_wide_columns():
    weight = torch.zeros(4, 40_000)
    weight[:, -1] = 1
    assert pack_blocks(weight, (4, 1)).columns.dtype == torch.int32
    assert pack_blocks(weight[:, 8000:], (4, 1)).columns.dtype == torch.int16
    assert torch.equal(unpack_blocks(pack_blocks(weight, (4, 1))), weight)


def test_grouping_finds_runs_that_share_columns():
    patterns = torch.rand(4, 200) < 0.2
    kept = patterns.repeat(8, 1)[torch.randperm(32)]  # eight copies of each, shuffled
    order = group_rows(kept, 8)
    assert order.sort().values.tolist() == list(range(32))
    assert all(len(group.unique(dim=0)) == 1 for group in kept[order].view(4, 8, 200))
    weight = kept.repeat_interleave(4, 0).float()
    grouped, alone = pack_blocks(weight, (32, 1), run=4), pack_blocks(weight, (32, 1))
    assert len(grouped.columns) < 0.4 * len(alone.columns)
    assert torch.equal(unpack_blocks(grouped), weight)


def test_grouping_keeps_an_order_that_is_no_worse_and_leaves_empty_runs_together():
    kept = torch.zeros(16, 40, dtype=torch.bool)
    kept[:4, :10] = kept[8:12, 20:30] = True
    assert group_rows(kept, 4).tolist() == list(range(16))
    shuffled = torch.randperm(16)
    order = group_rows(kept[shuffled], 4)
    assert kept[shuffled][order].view(4, 4, 40).any(1).sum() == 20


def broken(packed, **changes):
    return packed._replace(**{name: change(getattr(packed, name).clone()) for name, change in changes.items()})


def set_first(value):
    def change(tensor):
        tensor[0] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"columns": set_first(70)}, "columns"),
        ({"columns": set_first(-2)}, "columns"),
        ({"columns": lambda c: c[:-1]}, "columns"),
        ({"columns": lambda c: c[[1, 0, *range(2, len(c))]]}, "columns"),  # not ascending
        ({"columns": lambda c: c[[0, 0, *range(2, len(c))]]}, "columns"),
        ({"pointers": set_first(16)}, "pointers"),
        ({"pointers": lambda p: p.flip(0)}, "pointers"),
        ({"pointers": lambda p: p + 1}, "pointers"),
        ({"order": set_first(1)}, "order"),
        ({"order": lambda o: o + 1}, "order"),
        ({"values": lambda v: v[:-16]}, "columns, pointers"),
    ],
)
def test_what_a_kernel_must_not_read_is_refused(changes, named):
    packed = pack_blocks(matrix_of(40, 70, (8, 1)), (8, 1), run=4)
    with pytest.raises(ValueError, match=f"^{named}.*: does not fit a matrix \\[40, 70\\] in blocks 8 x 1"):
        check_blocks(broken(packed, **changes))


@pytest.mark.parametrize(
    ("name", "dtype"), [("pointers", torch.int64), ("order", torch.int64), ("columns", torch.int8)]
)
def test_an_index_of_other_integers_is_refused(name, dtype):
    packed = pack_blocks(matrix_of(40, 70, (8, 1)), (8, 1), run=4)
    with pytest.raises(ValueError, match=f"^{name}: want torch.int.*, got {dtype}"):
        check_blocks(broken(packed, **{name: lambda index: index.to(dtype)}))


def test_misuse():
    weight = torch.zeros(8, 8)
    for block in [(3, 1), (4, 4), (64, 1), (1, 16), (16, 8)]:
        with pytest.raises(ValueError, match="block: want"):
            pack_blocks(weight, block)
    for block, run in [((8, 1), 3), ((8, 1), 16), ((8, 1), 0), ((16, 16), 4)]:
        with pytest.raises(ValueError, match="run: want"):
            pack_blocks(weight, block, run=run)
    with pytest.raises(ValueError, match="weight: want"):
        pack_blocks(weight[0], (4, 1))
    with pytest.raises(TypeError, match="weight: want"):
        pack_blocks(weight.int(), (4, 1))
    assert isinstance(pack_blocks(weight, (4, 1)), PackedBlocks)
