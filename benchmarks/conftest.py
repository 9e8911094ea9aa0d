"""Fixtures of the operator benchmarks: shapes, a gate, cold caches, and a JSON of all rows.

On a GPU a time is that of a CUDA graph's replay between two events, the L2 cache flushed before it, so that neither
Python nor launches count; a row of what cannot be captured says so. On a CPU it is wall clock. An operator and its
rivals take turns. `share_of_copy` is the operator's bytes over its time, over the bandwidth of a copy measured in the
same run; the bytes are what the operator must move, counted in each file.
"""

import statistics
import time
from pathlib import Path

import pytest
import torch

from trisparse.prune.timing import clock_for, replayed
from trisparse.suite_rows import Rows

COPY_BYTES = 1 << 30
ENCODERS = {"bert-mini": (4, 256, 1024), "bert-base": (12, 768, 3072), "bert-large": (24, 1024, 4096)}
LLAMA = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
ROUNDS, SECONDS = 30, 2.0  # at most, for an operator and its rivals; three rounds at least


def pytest_addoption(parser):
    parser.addoption("--rows", type=Path, help="keep all rows as JSON in this file, and go on with what it lacks")
    parser.addoption("--budget_seconds", type=float, help="begin no test after these")
    parser.addoption("--dry_run", action="store_true", help="smallest shapes, one round: that everything runs")


def pytest_configure(config):
    config.pluginmanager.register(Rows(config.getoption("--rows"), config.getoption("--budget_seconds")), "rows")


@pytest.fixture
def is_small(request, device):
    """Whether only the smallest shapes are to be run: on a CPU, and where no time is meant."""
    return device.type == "cpu" or request.config.getoption("--dry_run")


def shapes_of(name):
    if name == "llama-7b layer":
        return LLAMA
    layers, hidden, feed_forward = ENCODERS[name]
    return ([(hidden, hidden)] * 4 + [(feed_forward, hidden), (hidden, feed_forward)]) * layers


@pytest.fixture(params=[*ENCODERS, "llama-7b layer"])
def model(request, is_small):
    """Name and shapes of the pruned weights."""
    if is_small and request.param != "bert-mini":
        pytest.skip("only the smallest")
    return request.param, shapes_of(request.param)


@pytest.fixture
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def copy_bandwidth(request):
    """Bytes a second of a large copy, read and written."""
    nbytes = COPY_BYTES >> 8 if request.config.getoption("--dry_run") else COPY_BYTES
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = torch.empty(nbytes // 2, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    clock = clock_for(device)
    times = [clock(lambda: target.copy_(source)) for _ in range(8)]
    return nbytes / (statistics.median(times[1:]) / 1e3)


@pytest.fixture
def rows(request):
    """Adds a row to the JSON."""
    return request.config.pluginmanager.get_plugin("rows").add


def in_turns(calls, clock, rounds):
    """Milliseconds of each call."""
    times = {name: [] for name in calls}
    begin = time.perf_counter()
    for index in range(rounds):
        for name, call in calls.items():
            times[name].append(clock(call))
        if index >= 2 and time.perf_counter() - begin > SECONDS:
            break
    return times


@pytest.fixture
def compare(request, rows, device, copy_bandwidth):
    """compare(op, model, ours, rivals, nbytes, check): gate, then time ours and each rival."""
    rounds = 2 if request.config.getoption("--dry_run") else ROUNDS

    def run(op, model, ours, rivals, nbytes, check):
        check()
        calls, notes = {}, {}
        for name, call in {"trisparse": ours, **rivals}.items():
            try:
                call()
                calls[name], is_replayed = replayed(call, device)
                notes[name] = {} if is_replayed or device.type == "cpu" else {"replayed": False}
            except Exception as error:
                if name == "trisparse" or "CUDA error" in str(error):
                    raise
                reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                rows({"op": op, "model": model, "what": name, "error": reason})
                print(f"{op:18} {model:28} {name:30} {reason}", flush=True)
        for name, times in in_turns(calls, clock_for(device), rounds).items():
            low, *_, high = statistics.quantiles(times, n=5)
            median = statistics.median(times)
            row = {"op": op, "model": model, "what": name, "median_ms": median, "p20_ms": low, "p80_ms": high}
            if name == "trisparse":
                rate = nbytes / (median / 1e3)
                row |= {"bytes": nbytes, "gb_per_s": rate / 1e9, "share_of_copy": rate / copy_bandwidth}
            rows(row | notes[name])
            share = f"{row['share_of_copy']:6.0%} of copy" if "share_of_copy" in row else ""
            share += ", not replayed" if notes[name] else ""
            print(f"{op:18} {model:28} {name:30} {median:9.4f} ms {share}", flush=True)

    return run
