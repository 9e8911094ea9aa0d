"""Compiling on first use: once for many processes, from nowhere that others can write, and one line where it can't."""

import os
import platform
import shutil
import subprocess
import sys
import warnings

import pytest
import torch

from trisparse.kernels.cpu import build
from trisparse.kernels.cpu import launch as launcher
from trisparse.sparse_ops import LinearBlocks

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")


@pytest.fixture
def afresh():
    """Nothing is loaded, and what the test loads is forgotten."""

    def forget():
        build.kernels.cache_clear()
        launcher.function_of.cache_clear()

    forget()
    yield
    forget()


@pytest.fixture
def small_source(tmp_path, monkeypatch):
    """A source that compiles at once."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "one.cpp").write_text('extern "C" int one() { return 1; }\n')
    monkeypatch.setattr(build, "SOURCES", folder)
    return folder


def layer_runs():
    linear = torch.nn.Linear(8, 8)
    with torch.no_grad():
        torch.testing.assert_close(LinearBlocks.from_linear(linear, (4, 1))(torch.ones(3, 8)), linear(torch.ones(3, 8)))


@needs_compiler
def test_compiled_once_and_anew_when_something_changes(small_source, tmp_path, capfd):
    first = build.build(tmp_path / "made")
    assert "compiling kernels for this CPU, once" in capfd.readouterr().err
    assert build.build(tmp_path / "made") == first
    assert capfd.readouterr().err == ""
    assert build.build(tmp_path / "made", ("-DOTHER",)) != first
    (small_source / "one.cpp").write_text('extern "C" int one() { return 2; }\n')
    assert build.build(tmp_path / "made") != first
    assert [path.suffix for path in (tmp_path / "made").iterdir()].count(".so") == 3


@needs_compiler
def test_ten_processes_at_once_compile_once(tmp_path):
    code = "from trisparse.kernels.cpu.build import kernels; assert kernels() is not None"
    env = {**os.environ, "TRISPARSE_CACHE": str(tmp_path)}
    runs = [
        subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE, text=True) for _ in range(10)
    ]
    said = "".join(run.communicate(timeout=300)[1] for run in runs)
    assert all(run.returncode == 0 for run in runs), said
    assert said.count("compiling") == 1
    assert len(list((tmp_path / "kernels").glob("*.so"))) == 1


@needs_compiler
def test_a_folder_that_others_can_write_is_not_loaded_from(small_source, tmp_path, afresh, monkeypatch):
    monkeypatch.setenv("TRISPARSE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "kernels").mkdir(parents=True)
    (tmp_path / "cache" / "kernels").chmod(0o777)
    with pytest.warns(
        UserWarning, match="can be written by others; chmod go-w, or set TRISPARSE_CACHE; packed layers are"
    ):
        layer_runs()
    (tmp_path / "cache" / "kernels").chmod(0o700)
    path = build.build()
    path.chmod(0o722)
    with pytest.raises(build._Unavailable, match="can be written by others"):
        build.build()


def test_without_a_compiler_the_plain_path_runs_after_one_warning(tmp_path, afresh, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.warns(UserWarning, match=r"no C\+\+ compiler \(c\+\+\) was found; install one"):
        layer_runs()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer_runs()


@needs_compiler
def test_a_source_that_does_not_compile_is_one_line(small_source, afresh):
    (small_source / "one.cpp").write_text("int broken(\n")
    with pytest.warns(
        UserWarning, match=r"can't compile the kernels \(.*error.*\); packed layers are multiplied by plain"
    ):
        layer_runs()


@needs_compiler
def test_another_system_and_no_home_take_the_plain_path(afresh, monkeypatch):
    monkeypatch.setattr(build.platform, "system", lambda: "Windows")
    with pytest.warns(UserWarning, match="kernels for CPUs are for Linux, and this is Windows"):
        layer_runs()
    monkeypatch.undo()
    build.kernels.cache_clear()
    launcher.function_of.cache_clear()
    monkeypatch.setattr(build, "cache_folder", lambda: None)
    with pytest.warns(UserWarning, match="there is no home for compiled kernels; set TRISPARSE_CACHE"):
        layer_runs()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs x86")
@needs_compiler
@pytest.mark.parametrize("flags", [["-march=sandybridge"], ["-march=haswell", "-U__GNUC__", "-D__GNUC__=11"]])
def test_older_processors_and_compilers(flags):
    if "Free Software" not in subprocess.run(["c++", "--version"], capture_output=True, text=True, check=True).stdout:
        pytest.skip("needs gcc")
    for source in build.SOURCES.glob("*.cpp"):
        options = [flag for flag in build.FLAGS if flag != "-O3"]
        subprocess.run(["c++", *options, *flags, "-fsyntax-only", str(source)], check=True)


@needs_compiler
def test_a_compiler_that_speaks_in_no_known_letters(small_source, afresh):
    (small_source / "one.cpp").write_bytes(b'#error "\xe9"\n')
    with pytest.warns(UserWarning, match="can't compile the kernels"):
        layer_runs()
