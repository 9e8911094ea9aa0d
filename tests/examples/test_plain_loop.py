"""The example of a plain loop: it learns, prunes, and goes on where it stopped."""

import re

import pytest
import torch


@pytest.fixture(scope="module")
def plain(example):
    return example("plain_loop")


def test_it_learns_prunes_and_resumes(plain, tmp_path, capsys):
    whole, report = plain.train()
    assert report.complete
    assert report.pattern_verified
    assert report.pruned_layers == 0.5
    assert report.head == "6"
    assert plain.accuracy(whole) > 0.85
    file = tmp_path / "new" / "plain.pt"
    plain.train(file, epochs=3)
    capsys.readouterr()
    plain.main(["--checkpoint", str(file)])
    text = capsys.readouterr().out
    assert text.startswith("epoch 4: accuracy 0.")
    assert re.search(r"zeros of the pruned layers +0.5000\n", text)
    resumed = torch.load(file, weights_only=True)["model"]
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.state_dict().items())
    assert [path.name for path in file.parent.iterdir()] == ["plain.pt"]
    plain.main(["--checkpoint", str(file)])
    text = capsys.readouterr().out
    assert "epoch" not in text, "it had ended"
    assert re.search(r"zeros of the pruned layers +0.5000\n", text)
