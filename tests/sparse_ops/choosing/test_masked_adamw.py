"""What `masked_adamw` refuses; what it computes is in the tests of its kernels."""

import pytest
import torch

from trisparse.sparse_ops import adamw_rates, masked_adamw


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"mask": torch.ones(8, 4, dtype=torch.bool).t()}, TypeError, r"masks\[0\]: want contiguous torch.bool"),
        ({"mask": torch.ones(4, 8, dtype=torch.int64)}, TypeError, r"masks\[0\]: want contiguous torch.bool, got .*64"),
        ({"score": torch.zeros(8, 4).t()}, TypeError, r"scores\[0\]: want contiguous torch.float32"),
        ({"score": torch.zeros(4, 8, dtype=torch.float64)}, TypeError, r"scores\[0\]: want contiguous torch.float32"),
        ({"grad": torch.zeros(4, 8)[:2]}, ValueError, r"grads\[0\]: want \[4, 8\] like its weight, got \[2, 8\]"),
        ({"seen": torch.zeros(1)}, TypeError, r"seen: want contiguous torch.bool \[1\], one a layer"),
        ({"seen": torch.zeros(2, dtype=torch.bool)}, TypeError, r"seen: want contiguous torch.bool \[1\], one a layer"),
    ],
)
@torch.no_grad()
def test_mistakes(changes, error, message):
    given = {
        "grad": torch.zeros(4, 8), "score": torch.zeros(4, 8), "mask": torch.ones(4, 8, dtype=torch.bool),
        "seen": torch.zeros(1, dtype=torch.bool),
    } | changes  # fmt: skip
    rates = torch.tensor([adamw_rates(0.1, (0.9, 0.999), 1e-8, 0.0, 1)], dtype=torch.float64)
    weight, first, second = torch.ones(4, 8), torch.zeros(4, 8), torch.zeros(4, 8)
    parts = [weight], [given["grad"]], [first], [second], rates, [given["score"]], [given["mask"]], [(1, 1)]
    with pytest.raises(error, match=message):
        masked_adamw(*parts, given["seen"])
    assert torch.equal(weight, torch.ones(4, 8))
