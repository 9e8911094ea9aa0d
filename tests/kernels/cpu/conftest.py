"""Fixtures of the C++ kernels' tests."""

import platform
import subprocess
from pathlib import Path

import pytest

from trisparse.kernels.cache import instructions
from trisparse.kernels.cpu import build

IS_X86 = platform.machine() == "x86_64"


@pytest.fixture(params=["native", *(["haswell", "x86-64"] if IS_X86 else [])])
def run_sanitized(request, tmp_path):
    """Compile a check program with sanitizers and run it: for this CPU, and for the vectors of AVX2 and of SSE."""
    if request.param == "haswell" and "avx2" not in instructions().split():
        pytest.skip("needs AVX2")

    def check(source: str) -> None:
        program = tmp_path / "check"
        flags = [*(flag for flag in build.FLAGS if flag not in ("-O3", "-fPIC")), "-O0", f"-march={request.param}"]
        flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover", "-I", str(build.SOURCES)]
        subprocess.run(["c++", *flags, str(Path(__file__).with_name(source)), "-o", str(program)], check=True)
        run = subprocess.run([str(program)], capture_output=True, text=True)
        assert (run.returncode, run.stdout, run.stderr) == (0, "0 differ\n", "")

    return check
