"""Fixtures of the C++ kernels' tests."""

import platform
import subprocess
from pathlib import Path

import pytest

from trisparse.kernels.cache import instructions
from trisparse.kernels.cpu import build

IS_X86 = platform.machine() == "x86_64"


# for this CPU, and for the vectors of AVX2, of SSE, and of AVX-512, made up of those of SSE where there is none
TARGETS = {
    "native": ["-march=native"],
    "haswell": ["-march=haswell"],
    "x86-64": ["-march=x86-64"],
    "16 lanes": ["-march=x86-64", "-DSIXTEEN_LANES", "-Wno-psabi"],
}


@pytest.fixture(params=TARGETS if IS_X86 else ["native"])
def run_sanitized(request, tmp_path):
    """Compile a check program with sanitizers and run it."""
    if request.param == "haswell" and "avx2" not in instructions().split():
        pytest.skip("needs AVX2")
    if request.param == "16 lanes" and "avx512f" in instructions().split():
        pytest.skip("native has them")

    def check(source: str) -> None:
        program = tmp_path / "check"
        flags = [*(flag for flag in build.FLAGS if flag not in ("-O3", "-fPIC")), "-O0", *TARGETS[request.param]]
        flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover", "-I", str(build.SOURCES)]
        subprocess.run(["c++", *flags, str(Path(__file__).with_name(source)), "-o", str(program)], check=True)
        run = subprocess.run([str(program)], capture_output=True, text=True)
        assert (run.returncode, run.stdout, run.stderr) == (0, "0 differ\n", "")

    return check
