"""What the static models expect: more of fewer weights and of taller vectors, nothing of what is nearly dense."""

import pytest

from trisparse.prune.speed_model import GAIN, expected_gain, expected_gain_on_cpu

ROWS, COLS = 3072, 768


def gain(model, height, stored, tokens):
    nbytes = int(ROWS * COLS * stored * (4 + 2 / height))
    return model("vectors", (height, 1), stored, nbytes, ROWS, COLS, tokens, 4)


@pytest.mark.parametrize("model", [expected_gain, expected_gain_on_cpu])
@pytest.mark.parametrize("tokens", [1, 128, 1024])
def test_fewer_and_taller_is_faster(model, tokens):
    for height in (4, 16):
        gains = [gain(model, height, stored, tokens) for stored in (0.5, 0.2, 0.1, 0.05)]
        assert gains == sorted(gains)
    assert gain(model, 4, 0.1, tokens) >= gain(model, 2, 0.1, tokens) >= gain(model, 1, 0.1, tokens)


@pytest.mark.parametrize("tokens", [32, 128, 1024])
def test_a_cpu_gains_as_its_benchmarks_say(tokens):
    """Within a half of what cpu_products.json holds, which is enough to choose what is worth measuring."""
    for height, stored, measured in ((4, 0.5, 1.9), (4, 0.1, 6.7), (1, 0.1, 3.4), (1, 0.3, 1.7)):
        assert measured / 1.5 < gain(expected_gain_on_cpu, height, stored, tokens) < measured * 1.5
    assert gain(expected_gain_on_cpu, 4, 0.9, tokens) < GAIN
    assert expected_gain_on_cpu("dense", (1, 1), 1.0, ROWS * COLS * 4, 64, 64, 1, 4) < 1, "a call has its price"
