"""Compiles the C++ kernels for this machine on first use, and loads them.

They are a plain shared library that `ctypes` calls: it compiles in seconds and is called in two microseconds, where
torch's extension loader has all of torch's headers to parse. Threads are those of torch's own OpenMP runtime, which is
in the process already and is found by its name.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from trisparse.kernels.cache import cache_folder, instructions, locked, processor

SOURCES = Path(__file__).parent
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-ffp-contract=fast", "-fopenmp")
_INSTEAD = "packed layers are multiplied by plain PyTorch, which unpacks them each time"


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """The compiled kernels; None where there can be none, after one warning that says what to do."""
    try:
        return ctypes.CDLL(str(build()))
    except _Unavailable as error:
        warnings.warn(f"trisparse: {error}; {_INSTEAD}", stacklevel=2)
    except OSError as error:
        warnings.warn(f"trisparse: the compiled kernels can't be loaded: {error}; {_INSTEAD}", stacklevel=2)
    return None


def build(folder: Path | None = None, flags: tuple[str, ...] = ()) -> Path:
    """The library's file, compiled if it is not there.

    Args:
        folder: where; `kernels` in the usual cache unless given.
        flags: of the compiler, besides the usual ones.
    """
    if platform.system() != "Linux":
        raise _Unavailable(f"kernels for CPUs are for Linux, and this is {platform.system()}")
    compiler = _compiler()
    usual = cache_folder()
    if folder is None and usual is None:
        raise _Unavailable("there is no home for compiled kernels; set TRISPARSE_CACHE to a folder")
    folder = folder or usual / "kernels"  # type: ignore[operator]
    _make_safe(folder)
    options = [*FLAGS, *_target(), *flags]
    path = folder / f"{_key(compiler, options)}.so"
    if not path.exists():
        with _may_fail(folder), locked(folder / "lock"):  # the first of many processes compiles, the others wait
            if not path.exists():
                _compile(compiler, options, path)
    _check_safe(path)
    return path


class _Unavailable(Exception):  # noqa: N818 (the reason for a warning)
    pass


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    raise _Unavailable("no C++ compiler (c++) was found; install one, on Debian by apt install g++")


def _target() -> list[str]:
    return ["-mcpu=native"] if platform.machine() in ("aarch64", "arm64") else ["-march=native"]


def _key(compiler: str, options: list[str]) -> str:
    """Of all that the machine code depends on."""
    found = hashlib.sha256()
    real = os.stat(compiler)  # its version takes ten times as long to ask for
    told = (compiler, real.st_size, real.st_mtime_ns, *options, processor(), instructions(), torch.__version__)
    found.update(repr(told).encode() + sources_digest().encode())
    return found.hexdigest()[:32]


def sources_digest() -> str:
    """Of what would be compiled."""
    found = hashlib.sha256()
    for source in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")]):
        found.update(source.name.encode() + b"\0" + source.read_bytes())
    return found.hexdigest()[:32]


def _compile(compiler: str, options: list[str], path: Path) -> None:
    sys.stderr.write("trisparse: compiling kernels for this CPU, once; takes some seconds\n")
    with tempfile.TemporaryDirectory(dir=path.parent) as half:
        sources = sorted(SOURCES.glob("*.cpp"))
        objects = [str(Path(half) / f"{source.stem}.o") for source in sources]
        _run([[compiler, *options, "-c", str(source), "-o", to] for source, to in zip(sources, objects, strict=True)])
        made = Path(half) / path.name
        _run([[compiler, *options, "-shared", *objects, "-o", str(made)]])
        made.chmod(0o700)
        made.replace(path)


def _run(commands: list[list[str]]) -> None:
    """All at once; raises _Unavailable with the compiler's first error."""
    runs = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
        for command in commands
    ]
    told = [run.communicate()[1] for run in runs]
    for command, run, text in zip(commands, runs, told, strict=True):
        if run.returncode:
            line = next((line for line in text.splitlines() if "error" in line), f"exit status {run.returncode}")
            raise _Unavailable(f"{command[0]} can't compile the kernels ({line.strip()[:200]})")


def _make_safe(folder: Path) -> None:
    with _may_fail(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _check_safe(folder)


def _check_safe(path: Path) -> None:
    """What is loaded runs: nobody else may have put it there."""
    found = path.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _Unavailable(f"{path} is another user's or can be written by others; chmod go-w, or set TRISPARSE_CACHE")


@contextlib.contextmanager
def _may_fail(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _Unavailable(
            f"{folder} can't be written to ({error.strerror}); set TRISPARSE_CACHE to a folder"
        ) from None
