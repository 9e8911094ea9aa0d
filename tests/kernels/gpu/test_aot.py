"""What the compilers make of the kernels, without a GPU: no spills, wide loads, no more instructions than recorded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

HERE = Path(__file__).parent
RECORDS = [json.loads(path.read_text()) for path in sorted(HERE.glob("instructions*.json"))]
TARGETS = list(RECORDS[0]["instructions"])


@pytest.fixture(scope="module")
def compiled():
    """Target -> kernel -> what its code shows. All targets are compiled at once, each in a process of its own."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    script = [sys.executable, str(HERE / "compile_kernels.py")]
    running = {
        arch: subprocess.Popen([*script, arch], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for arch in TARGETS
    }
    found = {}
    for arch, process in running.items():
        out, error = process.communicate()
        assert process.returncode == 0, f"{arch}: {error[-2000:]}"
        found[arch] = json.loads(out)
    return found


@pytest.mark.parametrize("arch", TARGETS)
def test_nothing_spills(compiled, arch):
    most = 512 if arch.startswith("gfx9") else 255  # that a thread can have
    bad = {name: row for name, row in compiled[arch].items() if row["local"] or row["registers"] > most}
    assert not bad


@pytest.mark.parametrize("arch", TARGETS)
def test_fast_paths_read_sixteen_bytes_at_once(compiled, arch):
    bad = {name: row for name, row in compiled[arch].items() if row["fast"] and not row["wide"]}
    assert not bad


@pytest.mark.parametrize("arch", TARGETS)
def test_weights_are_written_sixteen_bytes_at_once(compiled, arch):
    writers = {name: row for name, row in compiled[arch].items() if name.startswith(("mask_tiles ", "step_tiles"))}
    bad = {name: row for name, row in writers.items() if not row["wide_stores"]}
    assert writers
    assert not bad


@pytest.mark.parametrize("arch", TARGETS)
def test_no_kernel_grows_by_a_tenth(compiled, arch):
    record = next((record for record in RECORDS if record["triton"] == triton.__version__), None)
    if record is None:
        pytest.skip(f"recorded with Triton {[record['triton'] for record in RECORDS]}, this is {triton.__version__}")
    recorded = record["instructions"][arch]
    assert compiled[arch].keys() == recorded.keys(), "record anew: python tests/kernels/gpu/compile_kernels.py --record"
    grown = {
        name: (recorded[name], row["instructions"])
        for name, row in compiled[arch].items()
        if row["instructions"] > 1.1 * recorded[name]
    }
    assert not grown, "(recorded, now) instructions a weight"
