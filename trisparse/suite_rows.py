"""What a file of benchmarks has measured, written after every test, and where it goes on after it was stopped."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from trisparse.prune.files import atomic_write

_BROKEN = "CUDA error"  # after it nothing in a process runs


def machine() -> dict[str, Any]:
    """Device, versions and, where there is git, commit."""
    import triton

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
        commit = git.stdout.strip() or None
    except OSError:
        commit = None
    return {
        "gpu": gpu, "processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__,
        "commit": commit,
    }  # fmt: skip


class Rows:
    """A plugin of pytest that keeps the JSON of one file of benchmarks.

    Args:
        path: of the JSON, None to keep nothing: `machine`, `rows`, the names of tests that are `done` and of the one
            that is `running`, and how many are `left`. If any are, those alone are run, and what it holds stays.
        seconds: after which no test is begun; the others stay left.

    A test that fails, a file that cannot be imported and a test in which the process ended have a row with `error`.
    """

    def __init__(self, path: Path | None, seconds: float | None) -> None:
        self.path = path
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self.content: dict[str, Any] = {"machine": machine(), "left": None, "done": [], "running": None, "rows": []}
        before = read(path) if path else {}
        if before.get("left"):
            self.content |= {name: before[name] for name in ("done", "rows")}
            if before["running"]:
                self.add({"test": before["running"], "error": "the process ended"})
                self.content["done"].append(before["running"])

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row."""
        self.content["rows"].append(row)
        self._write()

    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid not in self.content["done"]]
        self.content["left"] = len(items)
        self._write()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.add({"test": report.nodeid, "error": _last_line(report)})

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.content["running"] = nodeid
        self._write()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.add({"test": report.nodeid, "error": f"in its {report.when}: {_last_line(report)}"})

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.content["running"] = None
        self.content["done"].append(nodeid)
        self.content["left"] -= 1
        self._write()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        result = yield
        errors = [row["error"] for row in self.content["rows"] if row.get("test") == item.nodeid]
        if self.deadline is not None and time.monotonic() > self.deadline:
            item.session.shouldstop = "no time is left"
        elif any(_BROKEN in error for error in errors):
            item.session.shouldstop = "the device is lost to this process"
        return result

    def _write(self) -> None:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self.path, json.dumps(self.content, indent=1) + "\n")


def _last_line(report: pytest.CollectReport | pytest.TestReport) -> str:
    """The error itself, of all that pytest says."""
    lines = [line[2:].strip() for line in report.longreprtext.splitlines() if line.startswith("E ")]
    return next(filter(None, lines), report.longreprtext.strip().splitlines()[-1])


def read(path: Path) -> dict[str, Any]:
    """A JSON of rows; empty if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
