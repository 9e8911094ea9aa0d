"""`trisparse train` as a process of its own, and called from another program."""

import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")
from trisparse.cli import main
from trisparse.prune.glue import train

WORDS = ["--model_name_or_path", "m", "--task_name", "mrpc", "--output_dir", "o"]


@pytest.mark.parametrize(("script", "flushes"), [("/bin/trisparse", [True]), ("/bin/program.py", []), (None, [])])
def test_only_a_process_of_its_own_flushes_denormal_numbers(monkeypatch, script, flushes):
    asked = []
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__file__=script))
    monkeypatch.setattr(torch, "set_flush_denormal", asked.append)
    monkeypatch.setattr(train, "run", lambda args: None)
    assert main(["train", *WORDS]) == 0
    assert asked == flushes
