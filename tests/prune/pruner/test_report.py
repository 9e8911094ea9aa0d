"""The report counts weights, and says when masks and weights disagree."""

import json

import pytest
import torch
from torch import nn

from trisparse import Pruner, PruningConfig, PruningError, prune_once


def test_counts_and_ratios(make_mlp):
    model = make_mlp(dims=(16, 32, 32, 2))
    report = prune_once(model, pattern="1x1", target_sparsity=0.5)
    zeros = sum(int((m.weight == 0).sum()) for m in model if isinstance(m, nn.Linear))
    assert zeros == 768
    assert report.pruned_layers == 768 / 1536
    assert report.matmul_gemm_conv == 768 / 1600
    biases = sum(int((p == 0).sum()) for n, p in model.named_parameters() if "bias" in n)
    assert report.all_parameters == (768 + biases) / sum(p.numel() for p in model.parameters())
    assert report.head == "4"
    assert report.complete
    assert [row.name for row in report.layers] == ["0", "2"]


def test_a_weight_that_came_back_is_an_error(make_mlp):
    model = make_mlp()
    pruner = Pruner(model, PruningConfig(pruning_type="magnitude", start_step=0, end_step=0))
    pruner.start()
    with torch.no_grad():
        model[0].weight[~pruner.masks()["0"]] = 1.0
    with pytest.raises(PruningError, match=r"0.weight: \d+ weights are not zero where the mask prunes"):
        pruner.report()


def test_extra_zeros_are_counted_and_shown(make_mlp):
    model = make_mlp()
    pruner = Pruner(
        model, PruningConfig(pattern="4x1", target_sparsity=0.5, pruning_type="magnitude", start_step=0, end_step=0)
    )
    pruner.start()
    kept = pruner.masks()["2"].nonzero()[:3]
    with torch.no_grad():
        model[2].weight[kept[:, 0], kept[:, 1]] = 0
    report = pruner.report()
    assert [row.extra_zeros for row in report.layers] == [0, 3]
    assert "3 weights are zero though no mask prunes them" in str(report)
    lines = str(report).splitlines()
    assert lines[0].split() == ["layer", "pattern", "shape", "zeros", "extra", "sparsity"]
    assert lines[2].split()[0] == "2", "what has more zeros than its mask asks for has a line of its own"
    assert lines[2].split()[4] == "3"
    assert report.pattern_verified


def test_a_run_that_stopped_early_says_so(make_mlp, sgd, train):
    model = make_mlp()
    pruner, optimizer = Pruner(model, PruningConfig(start_step=1, end_step=50, pruning_frequency=5)), sgd(model)
    with pruner.attach(optimizer):
        train(model, optimizer, 10)
    report = pruner.report()
    assert not report.complete
    note = f"stopped at step 10, before end_step 50: {report.pruned_layers:.4f} are zero, the target is 0.9"
    assert str(report).splitlines()[-1] == note


@pytest.mark.parametrize(("frequency", "is_said"), [(20, True), (10, True), (9, False)])
def test_a_window_with_one_event_is_said(make_mlp, sgd, train, frequency, is_said):
    model = make_mlp()
    config = PruningConfig(start_step=1, end_step=10, pruning_frequency=frequency, target_sparsity=0.5)
    pruner, optimizer = Pruner(model, config), sgd(model)
    with pruner.attach(optimizer):
        train(model, optimizer, 10)
    note = (
        f"group 0: pruning_frequency {frequency} is longer than the 9 steps from start_step to end_step, so one event, "
        "at step 1, went straight to the target"
    )
    assert pruner.report().notes == ((note,) if is_said else ())
    assert prune_once(make_mlp(), pattern="2:4").notes == (), "which asks for one event"


def test_save_writes_json_and_picture(make_mlp, tmp_path):
    report = prune_once(make_mlp(), pattern="2:4")
    report.save(tmp_path / "new" / "folder")
    saved = json.loads((tmp_path / "new" / "folder" / "sparsity.json").read_text())
    assert saved == json.loads(json.dumps(report.to_dict()))
    assert saved["layers"][0]["sparsity"] == 0.5
    if pytest.importorskip("matplotlib"):
        assert (tmp_path / "new" / "folder" / "sparsity.png").read_bytes().startswith(b"\x89PNG")


def test_save_replaces_a_report_and_nothing_else(make_mlp, tmp_path):
    report = prune_once(make_mlp(), pattern="2:4")
    report.save(tmp_path)
    report.save(tmp_path)
    for name, text in (("sparsity.json", "{}"), ("sparsity.json", "mine"), ("sparsity.png", "mine")):
        folder = tmp_path / f"{name}{text[:1]}"
        folder.mkdir()
        (folder / name).write_text(text)
        with pytest.raises(PruningError, match=f"{name}: was not written by a SparsityReport; give another folder, or"):
            report.save(folder)
        assert [path.name for path in folder.iterdir()] == [name]
        assert (folder / name).read_text() == text
        report.save(folder, overwrite=True)
        assert json.loads((folder / "sparsity.json").read_text()) == json.loads(json.dumps(report.to_dict()))


def test_a_picture_of_another_report_does_not_stay(make_mlp, tmp_path, monkeypatch):
    report = prune_once(make_mlp(), pattern="2:4")
    report.save(tmp_path)
    monkeypatch.setattr("trisparse.prune.pruner.report.plot_sparsity", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["sparsity.json"]


def test_prune_once_is_one_shot_by_magnitude(make_mlp):
    model = make_mlp()
    order = torch.cat([model[0].weight.flatten(), model[2].weight.flatten()]).abs().sort().values
    prune_once(model, pattern="1x1", target_sparsity=0.75)
    left = torch.cat([model[0].weight.flatten(), model[2].weight.flatten()]).abs()
    assert left[left > 0].min() >= order[int(0.75 * len(order))]
    with pytest.raises(PruningError, match="end_step: prune_once prunes at once"):
        prune_once(model, pattern="2:4", end_step=3)
