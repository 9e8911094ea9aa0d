"""`trisparse train` as a process of its own, and called from another program."""

import pytest
import torch

pytest.importorskip("transformers")
from trisparse.cli import main
from trisparse.prune.glue import train

WORDS = ["--model_name_or_path", "m", "--task_name", "mrpc", "--output_dir", "o"]


STARTED = {
    "trisparse": (["/bin/trisparse", "train", *WORDS], [True]),
    "trisparse-glue": (["/bin/trisparse-glue", *WORDS], [True]),
    "a run of a sweep": (["-c", *WORDS], [True]),
    "a program": (["program.py", "o"], []),
    "a notebook": ([""], []),
}


@pytest.mark.parametrize("name", STARTED)
def test_only_a_process_of_its_own_flushes_denormal_numbers(monkeypatch, name):
    words, flushes = STARTED[name]
    asked = []
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setattr(torch, "set_flush_denormal", asked.append)
    monkeypatch.setattr(train, "run", lambda args: None)
    assert main(["train", *WORDS]) == 0
    assert asked == flushes
