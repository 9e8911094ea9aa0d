"""Times of layers and the file that remembers them: readable, safe under writers at once and damage."""

import json
import multiprocessing
import time

import pytest
import torch
from torch import nn

from trisparse.prune.timing import TimingCache, time_pair

CPU = torch.device("cpu")
TIMES = {"dense_ms": 1.0, "packed_ms": 2.0, "equal": True}


class Slow(nn.Module):
    def __init__(self, layer, seconds):
        super().__init__()
        self.layer, self.seconds = layer, seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return self.layer(x)


def test_times_and_outputs():
    layer = nn.Linear(8, 8)
    times = time_pair(Slow(layer, 0.02), Slow(layer, 0.002), torch.randn(4, 8))
    assert times["equal"]
    assert 15 < times["dense_ms"] < 200
    assert times["packed_ms"] < times["dense_ms"] / 2
    assert not time_pair(layer, nn.Linear(8, 8), torch.randn(4, 8))["equal"]
    broken = nn.Linear(8, 8)
    broken.weight.data.fill_(torch.nan)
    assert not time_pair(layer, broken, torch.randn(4, 8))["equal"]


def test_remembers(tmp_path):
    cache = TimingCache(tmp_path, CPU)
    assert cache.get("a") is None
    cache.put("a", TIMES)
    cache.put("b", TIMES | {"equal": False})
    assert TimingCache(tmp_path, CPU).get("a") == TIMES
    assert json.loads(cache.path.read_text()).keys() == {"a", "b"}
    assert torch.__version__ in cache.path.name


def test_a_folder_from_the_environment(monkeypatch, tmp_path):
    assert TimingCache(None, CPU).path.parent.name.startswith("times")
    monkeypatch.delenv("TRISPARSE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert TimingCache(None, CPU).path.parent == tmp_path / "trisparse"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        '{"a": 3}',
        '{"a": {"dense_ms": "x"}}',
        '{"a": {"dense_ms": 1, "packed_ms": "2", "equal": 1}}',
        "\x00\xff",
    ],
)
def test_a_damaged_file_counts_as_empty(tmp_path, text):
    cache = TimingCache(tmp_path, CPU)
    cache.path.write_text(text, encoding="latin-1")
    assert cache.get("a") is None
    cache.put("b", TIMES)
    assert cache.get("b") == TIMES


def test_a_folder_that_cannot_be_written_to_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    cache = TimingCache(tmp_path / "file" / "below", CPU)
    cache.put("a", TIMES)
    assert cache.get("a") is None


def write_many(folder, name):
    cache = TimingCache(folder, CPU)
    for index in range(20):
        cache.put(f"{name} {index}", TIMES)


def test_writers_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(tmp_path, name)) for name in "abcd"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(json.loads(TimingCache(tmp_path, CPU).path.read_text())) == 80
