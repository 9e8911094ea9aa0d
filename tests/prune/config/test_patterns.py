"""Golden tables: which weights each pattern removes, on every kind of layer."""

import pytest
import torch
from torch import nn

from trisparse import Pruner, PruningConfig, PruningError, prune_once


def prune(module, weight, pattern, target, **keys):
    """Magnitude-prune one layer and return where it is still nonzero."""
    with torch.no_grad():
        module.weight.copy_(weight)
    report = prune_once(nn.Sequential(module), pattern=pattern, target_sparsity=target, exclude_head=False, **keys)
    assert report.pattern_verified
    return (module.weight != 0).int().tolist()


W = torch.tensor(
    [
        [1.0, 8.0, 3.0, 9.0],
        [2.0, 7.0, 9.0, 1.0],
        [9.0, 1.0, 1.0, 8.0],
        [1.0, 9.0, 2.0, 7.0],
    ]
)


@pytest.mark.parametrize(
    ("pattern", "target", "want"),
    [
        # seven weights: the five ones, then both twos
        ("1x1", 0.4375, [[0, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 1], [0, 1, 0, 1]]),
        # column sums 13 25 15 25: columns are whole units of four rows
        ("4x1", 0.5, [[0, 1, 0, 1]] * 4),
        # 2x2 sums: 18 22 / 20 18; the tie of 18 prunes the lower index
        ("2x2", 0.25, [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]),
        # row sums 21 19 19 19
        ("1xchannel", 0.25, [[1] * 4, [0] * 4, [1] * 4, [1] * 4]),
        ("channelx1", 0.25, [[0, 1, 1, 1]] * 4),
        # two rows have 40 and 38, two columns 38 and 40
        ("2xchannel", 0.5, [[1] * 4, [1] * 4, [0] * 4, [0] * 4]),
        ("channelx2", 0.5, [[0, 0, 1, 1]] * 4),
        # the two largest of every four inputs
        ("2:4", 0.5, [[0, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 1], [0, 1, 0, 1]]),
        ("1:2", 0.5, [[0, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 1], [0, 1, 0, 1]]),
        # one of every four; in the tie of row 2 the lower index stays
        ("3:4", 0.25, [[0, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 1], [0, 1, 1, 1]]),
    ],
)
def test_linear(pattern, target, want):
    assert prune(nn.Linear(4, 4, bias=False), W, pattern, target) == want


def test_partial_nm_prunes_the_cheapest_groups_and_leaves_the_others_dense():
    linear = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        linear.weight.copy_(W)
    report = prune_once(nn.Sequential(linear), pattern="2:4", target_sparsity=0.25, exclude_head=False)
    # what 2:4 costs each row: 4, 3, 2, 3; the tie of 3 prunes the lower row
    assert (linear.weight == 0).sum(1).tolist() == [0, 2, 2, 0]
    assert not report.pattern_verified
    assert "50.00% of the 2:4 groups are still dense" in str(report)


def test_hf_conv1d_is_pruned_along_its_inputs():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D(4, 4)  # weight [in, out]
    with torch.no_grad():
        conv1d.weight.copy_(W.t())
    report = prune_once(nn.Sequential(conv1d), pattern="2:4", exclude_head=False)
    assert (conv1d.weight != 0).int().t().tolist() == [[0, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 1], [0, 1, 0, 1]]
    assert report.matmul_gemm_conv == 0.5


@pytest.mark.parametrize(
    "conv",
    [nn.Conv1d(8, 4, 3), nn.Conv2d(8, 4, (2, 3)), nn.Conv3d(8, 4, (1, 2, 3))],
    ids=["Conv1d", "Conv2d", "Conv3d"],
)
def test_conv_channels_are_real_channels(conv):
    model = nn.Sequential(conv)
    with torch.no_grad():
        conv.weight.fill_(1.0)
        conv.weight[2] = 0.5
    prune_once(model, pattern="1xchannel", target_sparsity=0.25, exclude_head=False)
    assert conv.weight.flatten(1).eq(0).all(1).tolist() == [False, False, True, False]

    with torch.no_grad():
        conv.weight.fill_(1.0)
        conv.weight[:, 5] = 0.5
    prune_once(model, pattern="channelx1", target_sparsity=0.125, exclude_head=False)
    assert conv.weight.transpose(0, 1).flatten(1).eq(0).all(1).nonzero().flatten().tolist() == [5]


def test_conv_blocks_and_groups_run_along_the_input_channels():
    conv = nn.Conv2d(8, 4, 3)
    prune_once(nn.Sequential(conv), pattern="2:4", exclude_head=False)
    taps = conv.weight.permute(0, 2, 3, 1)  # [out, kh, kw, in]
    assert ((taps.reshape(-1, 4) != 0).sum(1) == 2).all()
    conv = nn.Conv2d(8, 4, 3)
    prune_once(nn.Sequential(conv), pattern="4x1", target_sparsity=0.75, exclude_head=False)
    zero = (conv.weight == 0).sum(0)
    assert set(zero.unique().tolist()) == {0, 4}


def test_channels_last_weights_are_pruned_in_place():
    conv = nn.Conv2d(8, 4, 3).to(memory_format=torch.channels_last)
    pointer, strides = conv.weight.data_ptr(), conv.weight.stride()
    report = prune_once(nn.Sequential(conv), pattern="4x1", target_sparsity=0.5, exclude_head=False)
    assert (conv.weight.data_ptr(), conv.weight.stride()) == (pointer, strides)
    assert report.pruned_layers == 0.5


def test_a_pattern_that_does_not_divide_lists_every_layer_and_the_fix():
    model = nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 8), nn.Linear(8, 6))
    config = PruningConfig(pattern="4x1", start_step=1, end_step=2)
    with pytest.raises(PruningError, match=r"does not divide 0 \(10 output rows are no multiple of 4\)") as caught:
        Pruner(model, config)
    assert "add to excluded_op_names: ['^0$']" in str(caught.value)
    assert len(Pruner(model, config.excluding("^0$")).layers) == 1
    with pytest.raises(PruningError, match=r"0 \(6 input columns are no multiple of 4\), 1 \(10 input columns"):
        prune_once(model, pattern="2:4")
    for several, what in (("4xchannel", r"10 output rows are no multiple of 4"), ("channelx5", "6 input columns are")):
        with pytest.raises(PruningError, match=f"does not divide 0 \\({what}"):
            prune_once(model, pattern=several, target_sparsity=0.5)
    grouped = nn.Sequential(nn.Conv2d(8, 8, 1, groups=2))
    with pytest.raises(PruningError, match="2 groups share no input channel"):
        prune_once(grouped, pattern="channelx1", exclude_head=False, target_sparsity=0.5)
