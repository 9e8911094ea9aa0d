"""`report(model)`: zeros of any model, and the pattern that they show."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.prune import l1_unstructured

from trisparse import PruningError, compress, prune_once, report
from trisparse.prune.deploy.zero_pattern import pattern_of
from trisparse.sparse_ops import LinearBlocks


@pytest.mark.parametrize(
    "pattern",
    ["2:4", "1:4", "1:2", "2:8", "4:8", "1xchannel", "channelx1", "2x1", "4x1", "16x1", "4x4", "32x32", "1x1"],
)
def test_the_pattern_of_zeros(pattern):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 2))
    keys = {} if ":" in pattern else {"target_sparsity": 0.5}
    prune_once(model, pattern=pattern, **keys)
    assert [row.pattern for row in report(model).layers] == [pattern, "dense"]


@pytest.mark.parametrize(
    ("matrix", "want"),
    [
        ([[1.0, 1], [1, 1]], "dense"),
        ([[1.0, 0], [1, 1]], "1x1"),
        ([[1.0, 0], [1, 0]], "channelx1"),
        ([[0.0, 0], [0, 0]], "1xchannel"),
        ([[1.0, float("nan")], [0, 0]], "1xchannel"),
        ([[1.0, 1, 0, 0], [0, 1, 1, 0]], "2:4"),
        ([[1.0, 0, 1, 1], [1, 1, 1, 1]], "1x1"),
        ([[1.0, 0, 0]], "1x1"),  # a row alone does not tell
    ],
    ids=str,
)
def test_small_ones_by_hand(matrix, want):
    assert pattern_of(torch.tensor(matrix)[:, None])[0] == want


def test_many_single_zeros_are_not_two_of_four_by_chance():
    matrix = torch.ones(8, 1, 16)
    matrix.view(8, 4, 4)[:, :, 1:] = 0
    matrix[0, 0, :4] = torch.tensor([0.0, 1, 1, 0])
    assert pattern_of(matrix) == ("1x1", 8 * 12 - 1)


def test_totals_and_text():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    dense = report(model)
    assert (dense.pruned_layers, dense.pattern_verified, dense.complete, dense.head) == (0, None, None, "2")
    assert "verified" not in str(dense)
    prune_once(model, pattern="2:4")
    found = report(model)
    assert (found.pruned_layers, found.matmul_gemm_conv) == (0.5, 64 / 144)
    assert str(found).splitlines()[1].split() == ["2", "layers", "2:4", "8x8", "64", "0.5000"]
    model[1].weight = model[0].weight
    assert [row.name for row in report(model).layers] == ["0", "2"], "a shared weight counts once"


def test_convolutions_and_conv1d_have_their_own_layout():
    conv = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ConvTranspose2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 8))
    prune_once(conv, pattern="2:4", exclude_head=False)
    assert [row.pattern for row in report(conv).layers] == ["2:4"] * 3
    conv1d = nn.Sequential(pytest.importorskip("transformers.pytorch_utils").Conv1D(16, 8), nn.ReLU())
    prune_once(conv1d, pattern="4x1", target_sparsity=0.5)
    assert [row.pattern for row in report(conv1d).layers] == ["4x1"]


def test_a_compressed_model_is_looked_at_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2))
    prune_once(model, pattern="16x1", target_sparsity=0.75)
    before = report(model)
    packed, _ = compress(copy.deepcopy(model), "memory", measure=False, remove_channels=False)
    after = report(packed)
    assert after.layers == before.layers
    assert after.notes[0] == "compressed: 2 layers are packed"
    assert sum(isinstance(module, LinearBlocks) for module in packed.modules()) == 2, "it is looked at in a copy"


def test_stray_zeros_are_no_pattern():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(3)))
    prune_once(model, pattern="4x1", target_sparsity=0.9, op_names=["0"])
    with torch.no_grad():
        for layer in model:
            layer.weight.view(-1)[layer.weight.view(-1).nonzero()[0]] = 0
    found = report(model)
    assert [(row.pattern, row.extra_zeros) for row in found.layers] == [("4x1", 1), ("dense", 1), ("dense", 1)]
    assert found.pruned_layers == found.layers[0].sparsity


def test_one_tap_of_a_channel_is_no_channel():
    conv = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU())
    with torch.no_grad():
        conv[0].weight[:, 0, 1, 1] = 0
    assert report(conv).layers[0].pattern == "8x1"
    with torch.no_grad():
        conv[0].weight[:, 0] = 0
    assert report(conv).layers[0].pattern == "channelx1"


def test_weights_that_are_computed_and_those_that_are_not_there():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 0))
    l1_unstructured(model[0], "weight", 0.5)
    found = report(model)
    assert [(row.name, row.zeros) for row in found.layers] == [("0", 32), ("1", 0)]
    assert found.matmul_gemm_conv == 32 / 128
    assert found.notes == ()
    assert str(report(nn.Linear(8, 8))).splitlines()[1].split()[0] == "model"
    quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 8)), {nn.Linear})
    with pytest.raises(PruningError, match="no weight whose zeros can be counted: 0 .*quantized"):
        report(quantized)
    with pytest.raises(PruningError, match="0: its weight holds no numbers"):
        report(nn.Sequential(nn.Linear(8, 8, device="meta")))


@pytest.mark.parametrize(("model", "message"), [(nn.ReLU(), "nothing in it multiplies"), (3, "want an nn.Module")])
def test_mistakes(model, message):
    with pytest.raises(PruningError, match=message):
        report(model)
