"""Steps a second, without the time between epochs."""

from trisparse.prune.glue import pace as module


def test_pauses_do_not_count(monkeypatch):
    now = 100.0
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    pace = module.Pace(5)
    now += 2
    pace.pause()
    now += 50  # an evaluation
    pace.go_on()
    now += 3
    assert pace.look(15) == 10 / 5
    now += 4
    assert pace.look(16) == 1 / 4
