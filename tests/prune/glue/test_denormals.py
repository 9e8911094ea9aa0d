"""A run computes without denormal numbers, and leaves the caller's arithmetic as it was."""

import pytest
import torch

pytest.importorskip("transformers")
from trisparse.prune.errors import PruningError
from trisparse.prune.glue import setup
from trisparse.prune.glue.denormals import flushed_denormals, is_flushing
from trisparse.prune.glue.parse import parse_arguments
from trisparse.prune.glue.train import run

pytestmark = pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this CPU keeps denormal numbers")


def test_a_run_flushes_and_gives_back_what_was_set(monkeypatch):
    seen = []

    def set_up(args):
        seen.append(is_flushing())
        raise PruningError("here it ends")

    monkeypatch.setattr(setup, "set_up", set_up)
    args = parse_arguments(["--model_name_or_path", "m", "--task_name", "mrpc", "--output_dir", "o"])
    with pytest.raises(PruningError, match="here it ends"):
        run(args)
    assert seen == [True]
    assert not is_flushing()
    with flushed_denormals():
        with flushed_denormals():
            pass
        assert is_flushing()
    assert not is_flushing()


def test_moments_of_pruned_weights_end_at_zero():
    """0.9 times the smallest denormal number is rounded back to it, again and again."""
    smallest = 2.0**-149
    with flushed_denormals():
        assert float(torch.full((), 2.0**-126) * 0.9) == 0
    assert float(torch.full((), smallest) * 0.9) == smallest
