"""The example of a search: trials choose patterns and targets, and TensorBoard has each one's sparsity."""

import itertools

import pytest

pytest.importorskip("transformers")
pytest.importorskip("optuna")
pytest.importorskip("tensorboard")


def test_it_finds_a_front_that_can_be_watched(example, tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    search = example("search")
    search.main(["--output_dir", str(tmp_path), "--trials", "2", "--report_to", "tensorboard"])
    rows = [line.split() for line in capsys.readouterr().out.split("times as fast\n")[1].splitlines()]
    assert 1 <= len(rows) <= 2
    losses, zeros = [float(row[3]) for row in rows], [float(row[4]) for row in rows]
    assert (zeros, losses) == (sorted(zeros), sorted(losses)), "no row is beaten by another"
    for _, pattern, asked, _, got in rows:
        assert pattern in ("4x1", "1x1")
        assert float(got) == pytest.approx(float(asked), abs=2e-3)
    folders = sorted({path.parent for path in tmp_path.glob("**/events.*")})
    assert [folder.name for folder in folders] == ["trial-0", "trial-1"]
    for folder in folders:
        events = EventAccumulator(str(folder)).Reload()
        seen = [(event.step, event.value) for event in events.Scalars("train/sparsity")]
        assert [step for step, _ in seen] == [8, 12, 16], "the event at step 4 asks for nothing yet"
        assert all(a < b for (_, a), (_, b) in itertools.pairwise(seen))
        assert 0.5 <= seen[-1][1] <= 0.95
