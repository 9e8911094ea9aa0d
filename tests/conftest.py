"""Fixtures shared by all tests."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: kernels then run on the CPU, line by line


def pytest_configure():
    if torch.cuda.is_available() or not importlib.util.find_spec("triton"):
        return
    triton, numpy = (tuple(map(int, version(name).split(".")[:2])) for name in ("triton", "numpy"))
    if triton < (3, 7) and numpy >= (2, 4):
        pytest.exit("Triton before 3.7 can't interpret kernels with NumPy 2.4 or later: pip install 'numpy<2.4'", 4)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA or ROCm device"))


@pytest.fixture(scope="session")
def forget_precision():
    """accelerate takes one precision a process, that of the first run; make it forget."""

    def forget():
        if state := sys.modules.get("accelerate.state"):
            state.AcceleratorState._reset_state(reset_partial_state=True)

    return forget


@pytest.fixture(autouse=True)
def any_precision(forget_precision):
    """No test's precision depends on the tests before it."""
    yield
    forget_precision()


@pytest.fixture
def device():
    """Where kernels run: a GPU if there is one, else the CPU under Triton's interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def script():
    """Path of an installed console script; the environment need not be activated."""
    return lambda name: str(Path(sysconfig.get_path("scripts")) / name)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def compiled_kernels(tmp_path_factory):
    """Where kernels for the CPU are compiled to, once for all workers."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / "kernels"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def timing_cache(tmp_path_factory, monkeypatch, compiled_kernels):
    """Times of layers go to a folder of the test's own."""
    folder = tmp_path_factory.mktemp("times")
    (folder / "kernels").symlink_to(compiled_kernels)
    monkeypatch.setenv("TRISPARSE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def on_ranks(tmp_path_factory):
    """Run `script MODE RANK WORLD FOLDER …` for every rank at once; the folder that they share, and what they said."""

    def run(script, mode, world, *more, fails=False):
        folder = tmp_path_factory.mktemp(f"{mode}{world}")
        processes = [
            subprocess.Popen(
                [sys.executable, str(script), mode, str(rank), str(world), str(folder), *map(str, more)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(world)
        ]
        outputs = [process.communicate(timeout=300)[0] for process in processes]
        assert all(bool(process.returncode) == fails for process in processes), "\n".join(outputs)
        return folder, outputs

    return run
