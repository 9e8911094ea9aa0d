"""The order of examples."""

import pytest

from trisparse.prune.data.batches import EpochSampler


@pytest.mark.parametrize("grouped", [False, True])
def test_batches_depend_on_seed_and_epoch_alone(grouped):
    lengths = [(i * 7) % 13 + 1 for i in range(400)]

    def order(seed, epoch):
        sampler = EpochSampler(lengths, seed, 8, grouped)
        sampler.epoch = epoch
        return list(sampler)

    assert sorted(order(1, 0)) == list(range(400))
    assert order(1, 3) == order(1, 3)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)
    if grouped:
        sizes = [[lengths[i] for i in order(1, 0)[k : k + 8]] for k in range(0, 400, 8)]
        assert sum(max(size) - min(size) for size in sizes) / len(sizes) <= 2
