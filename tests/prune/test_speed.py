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
    ratio = times_faster(Slow(0.008), Slow(0.002), {"x": x}, rounds=7)
    assert 2 < ratio < 5
    assert 0.2 < times_faster(Slow(0.002), Slow(0.008), {"x": x}, rounds=7) < 0.5
