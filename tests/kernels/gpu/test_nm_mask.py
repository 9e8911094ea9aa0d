"""N:M masks against a stable sort, ties and specials included."""

import math

import pytest
import torch

from trisparse.kernels.gpu.nm_mask import nm_mask


def by_sorting(scores, n, m):
    groups = scores.float().view(-1, m)
    keys = groups.nan_to_num(nan=math.inf).double()
    keys[groups.isnan()] = 1e300  # above every fp32, and inf is brought below it
    keys[groups == math.inf] = 1e299
    best = torch.sort(keys, dim=1, descending=True, stable=True).indices[:, :n]
    return torch.zeros_like(keys, dtype=torch.bool).scatter_(1, best, True).view(scores.shape)


def specials(rows, cols):
    x = torch.randn(rows, cols)
    x[0] = 0.0
    x[1] = torch.randint(0, 3, (cols,))
    x[2, ::2], x[2, 1::3] = math.inf, -math.inf
    x[3, ::3], x[3, 1::3] = math.nan, -math.nan
    x[4], x[4, ::2] = -0.0, 0.0
    x[5, ::2] = torch.tensor(1e-45)
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("n", "m"), [(1, 1), (1, 2), (1, 4), (2, 4), (4, 8), (8, 16), (16, 32), (31, 32), (2, 3), (3, 5), (7, 7), (5, 12)]
)
def test_equals_a_stable_sort(device, dtype, n, m):
    x = specials(8, 5 * m).to(device, dtype)
    want = by_sorting(x.cpu(), n, m)
    assert torch.equal(nm_mask(x, n, m).cpu(), want)
    assert torch.equal(nm_mask(x.t().contiguous(), n, m, dim=0).cpu(), want.t())
    assert torch.equal(nm_mask(x, n, m, magnitude=True).cpu(), by_sorting(x.abs().cpu(), n, m))


def test_more_groups_than_a_program_takes(device):
    x = torch.randint(0, 4, (3, 4000), device=device).float()
    assert torch.equal(nm_mask(x, 2, 4).cpu(), by_sorting(x.cpu(), 2, 4))


def test_a_view_that_is_not_contiguous(device):
    x = torch.randn(12, 8, device=device).t()
    assert torch.equal(nm_mask(x, 1, 4).cpu(), by_sorting(x.cpu().contiguous(), 1, 4))


def test_nothing(device):
    assert nm_mask(torch.zeros(0, 8, device=device), 2, 4).shape == (0, 8)
