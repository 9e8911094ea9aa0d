"""Times of layers and the file that remembers them: readable, safe under writers at once and damage."""

import json
import multiprocessing
import runpy
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import trisparse
from trisparse.prune import timing
from trisparse.prune.deploy.choose_format import Chooser
from trisparse.prune.timing import TimingCache, machine, time_pair

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
    assert time_pair(broken, broken, torch.randn(4, 8))["equal"]


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
        '{"a": {"dense_ms": 1.0, "packed_ms": 0, "equal": true}}',
        '{"a": {"dense_ms": 1.0, "packed_ms": 0.0, "equal": true}}',
        '{"a": {"dense_ms": -1.0, "packed_ms": 1.0, "equal": true}}',
        '{"a": {"dense_ms": Infinity, "packed_ms": 1.0, "equal": true}}',
        '{"a": {"dense_ms": NaN, "packed_ms": 1.0, "equal": true}}',
        '{"a": {"dense_ms": 1' + "0" * 400 + ', "packed_ms": 1.0, "equal": true}}',
        '{"a": {"dense_ms": 1.0, "packed_ms": 1.0, "equal": 1}}',
        "[" * 200_000,
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


def test_without_a_home_only_a_named_folder_is_used(tmp_path, monkeypatch):
    monkeypatch.delenv("TRISPARSE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", lambda: exec("raise RuntimeError('no home')"))
    cache = TimingCache(None, CPU)
    cache.put("a", TIMES)
    assert cache.get("a") is None
    named = TimingCache(tmp_path, CPU)
    named.put("a", TIMES)
    assert named.get("a") == TIMES


def test_the_file_is_of_this_machine_and_these_versions():
    name = machine(CPU)
    assert f"trisparse-{trisparse.__version__}_torch-{torch.__version__}" in name
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    assert not models or name.startswith(models[0].split(": ")[1].split()[0].partition("(")[0])


def test_no_lock_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    cache = runpy.run_path(timing.__file__)["TimingCache"](tmp_path, CPU)
    cache.put("a", TIMES)
    assert cache.get("a") == TIMES


def test_densities_that_differ_a_little_are_timed_apart(tmp_path):
    kept = torch.rand(16, 64) < 0.3
    for columns in (16, 17):
        layer = nn.Linear(64, 64)
        kept[0] = torch.arange(64) < columns
        layer.weight.data *= kept.repeat_interleave(4, 0)
        row, _ = Chooser("memory", [1], True, tmp_path).choose("x", layer, "")
        assert row.format == "4x1"
    assert len(json.loads(TimingCache(tmp_path, CPU).path.read_text())) == 2


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
