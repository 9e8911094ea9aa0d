"""Where what is made once for a machine is kept: measured times, compiled kernels."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path


def cache_folder() -> Path | None:
    """`$TRISPARSE_CACHE`, else `trisparse` in `$XDG_CACHE_HOME` or `~/.cache`; None for a user without a home."""
    if given := os.environ.get("TRISPARSE_CACHE"):
        return Path(given)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trisparse"
    except RuntimeError:  # neither HOME nor an entry for the user
        return None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time is in here, for one path."""
    with path.open("w") as lock:
        with contextlib.suppress(ImportError):  # Windows has none, and writes without a lock
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)  # closing the file lets go of it
        yield


def processor() -> str:
    """The CPU's model where Linux tells it; `platform.processor` knows the architecture at most."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def instructions() -> str:
    """What the CPU can do beyond its architecture, where Linux tells it."""
    return _cpuinfo("flags") or _cpuinfo("Features")


def extensions() -> list[str]:
    """Which of the instruction sets that kernels profit from the CPU has, for the record of a benchmark."""
    has = instructions().split()
    return [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_tile", "asimd") if name in has]


def _cpuinfo(field: str) -> str:
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith(field):
                return line.partition(":")[2].strip()
    return ""
