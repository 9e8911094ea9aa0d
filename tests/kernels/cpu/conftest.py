"""Fixtures of the C++ kernels' tests."""

import subprocess
from pathlib import Path

import pytest

from trisparse.kernels.cpu import build


@pytest.fixture
def run_sanitized(tmp_path):
    """Compile a check program with sanitizers, and run it."""

    def check(source: str) -> None:
        program = tmp_path / "check"
        flags = [*(flag for flag in build.FLAGS if flag not in ("-O3", "-fPIC")), "-O1", "-march=native"]
        flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover", "-I", str(build.SOURCES)]
        subprocess.run(["c++", *flags, str(Path(__file__).with_name(source)), "-o", str(program)], check=True)
        run = subprocess.run([str(program)], capture_output=True, text=True)
        assert (run.returncode, run.stdout, run.stderr) == (0, "0 differ\n", "")

    return check
