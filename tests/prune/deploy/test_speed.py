"""Timing two models in turns."""

import time

import torch
from torch import nn

from trisparse.prune.speed import times_faster


class Slow(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.weight, self.seconds = nn.Parameter(torch.zeros(1)), seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return x


def test_the_ratio_of_two_models():
    x = torch.zeros(1)
    slow, fast = Slow(0.04), Slow(0.004)
    assert 2 < times_faster(slow, fast, {"x": x}, rounds=7) < 12  # a busy machine sleeps longer
    assert times_faster(fast, slow, {"x": x}, rounds=7) < 0.5
