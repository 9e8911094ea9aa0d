"""Fixtures of the operator benchmarks: shapes, a gate, cold caches, and one JSON of all rows.

On a GPU a row's times are CUDA events with the L2 cache flushed before each call; where a benchmark asks for it, a
second row has the time of a call replayed from a CUDA graph, with the cache warm. On a CPU they are wall clock.
`share` is the operator's bytes over its time, over the bandwidth of a copy measured in the same run; the bytes are
what the operator must move, counted in each file.
"""

import json
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path

import pytest
import torch
import triton
import triton.testing

COPY_BYTES = 1 << 30
ENCODERS = {"bert-mini": (4, 256, 1024), "bert-base": (12, 768, 3072), "bert-large": (24, 1024, 4096)}
LLAMA = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
_rows = []


def pytest_addoption(parser):
    parser.addoption("--rows", type=Path, help="write all rows as JSON to this file")


def shapes_of(name):
    if name == "llama-7b layer":
        return LLAMA
    layers, hidden, feed_forward = ENCODERS[name]
    return ([(hidden, hidden)] * 4 + [(feed_forward, hidden), (hidden, feed_forward)]) * layers


@pytest.fixture(params=[*ENCODERS, "llama-7b layer"])
def model(request, device):
    """Name and shapes of the pruned weights; a CPU gets the smallest only."""
    if device.type == "cpu" and request.param != "bert-mini":
        pytest.skip("too large for a CPU")
    return request.param, shapes_of(request.param)


@pytest.fixture
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def copy_bandwidth():
    """Bytes a second of a large copy, read and written."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = torch.empty(COPY_BYTES // 2, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    if device == "cuda":
        return COPY_BYTES / (triton.testing.do_bench(lambda: target.copy_(source)) / 1e3)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - begin)
    return COPY_BYTES / statistics.median(times)


@pytest.fixture
def rows():
    """Adds a row to the JSON."""
    return _rows.append


@pytest.fixture
def compare(benchmark, device, copy_bandwidth):
    """compare(op, model, ours, rivals, nbytes, check, replay=False): gate, then time ours and each rival."""

    def milliseconds(call):
        if device.type == "cuda":
            return triton.testing.do_bench(call, warmup=50, rep=200, quantiles=(0.5, 0.2, 0.8))
        times = []
        for _ in range(12):
            begin = time.perf_counter()
            call()
            times.append((time.perf_counter() - begin) * 1e3)
        low, *_, high = statistics.quantiles(times, n=5)
        return statistics.median(times), low, high

    def replayed(call):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            low, median, high = triton.testing.do_bench_cudagraph(call, quantiles=(0.2, 0.5, 0.8))
        return median, low, high

    def run(op, model, ours, rivals, nbytes, check, replay=False):
        check()
        for name, call in {"trisparse": ours, **rivals}.items():
            median, p20, p80 = milliseconds(call)
            row = {"op": op, "model": model, "what": name, "median_ms": median, "p20_ms": p20, "p80_ms": p80}
            if name == "trisparse":
                rate = nbytes / (median / 1e3)
                row |= {"bytes": nbytes, "gb_per_s": rate / 1e9, "share_of_copy": rate / copy_bandwidth}
                benchmark.extra_info |= row
            _rows.append(row)
            share = f"{row['share_of_copy']:6.0%} of copy" if "share_of_copy" in row else ""
            print(f"{op:14} {model:24} {name:28} {median:9.4f} ms {share}", flush=True)
            if replay and device.type == "cuda":
                try:
                    median, p20, p80 = replayed(call)
                except RuntimeError as error:
                    print(f"{op:14} {model:24} {name + ', replayed':28} cannot: {str(error).splitlines()[0]}")
                    continue
                row = {"op": op, "model": model, "what": f"{name}, replayed"}
                _rows.append(row | {"median_ms": median, "p20_ms": p20, "p80_ms": p80})
                print(f"{op:14} {model:24} {name + ', replayed':28} {median:9.4f} ms", flush=True)

        def waited():
            ours()
            if device.type == "cuda":
                torch.cuda.synchronize()

        benchmark.pedantic(waited, rounds=10, warmup_rounds=2)

    return run


def machine():
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return {
        "gpu": gpu, "processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__,
        "commit": commit.stdout.strip() or None,
    }  # fmt: skip


def pytest_sessionfinish(session):
    path = session.config.getoption("--rows")
    if path and _rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(".part")
        half.write_text(json.dumps({"machine": machine(), "rows": _rows}, indent=1) + "\n")
        half.replace(path)
