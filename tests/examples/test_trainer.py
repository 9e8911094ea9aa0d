"""The example of transformers' Trainer: precision, accumulation, resuming."""

import re
import shutil

import pytest
import torch

pytest.importorskip("transformers")


def test_it_prunes_and_resumes(example, tmp_path, capsys):
    trainer = example("trainer")
    flags = ["--output_dir", str(tmp_path / "out"), "--bf16", "--gradient_accumulation_steps", "2"]
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit):
        trainer.main([*flags, "--resume"])
    assert f"--resume: {tmp_path / 'out'} holds no checkpoint" in capsys.readouterr().err
    trainer.main(flags)
    text = capsys.readouterr().out
    assert re.search(r"zeros of the pruned layers +0.7500\n", text)
    assert "pattern verified: yes; schedule complete: yes; head left dense: classifier" in text
    last = tmp_path / "out" / "checkpoint-48"
    whole = torch.load(last / "pruner.pt", weights_only=True)
    weights = (last / "model.safetensors").read_bytes()
    assert whole["step_count"] == 48, "optimizer steps, of two batches each"
    shutil.rmtree(last)
    trainer.main([*flags, "--resume"])
    assert "schedule complete: yes" in capsys.readouterr().out
    assert (last / "model.safetensors").read_bytes() == weights
    resumed = torch.load(last / "pruner.pt", weights_only=True)
    for one, two in zip(whole["groups"], resumed["groups"], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one["units"], two["units"], strict=True))
