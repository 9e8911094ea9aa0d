"""Runs the steps of `trisparse bench --suite`, each in processes of its own, within a budget of time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
import xml.etree.ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trisparse.prune.files import atomic_write
from trisparse.suite_rows import machine, read
from trisparse.suite_steps import Step, command

STATE = "suite.json"
_GRACE = 30.0  # seconds for the test that is running when time is up
_LEAST = 5.0  # seconds to begin a step with
_BEYOND = (0, 1, 2, 5)  # statuses of pytest that are no crash: passed, failed, stopped, nothing to run


class Suite:
    """Steps, the folder of their results, and what became of each.

    Args:
        steps: in their order.
        root: the checkout.
        folder: for results; `suite.json` there says of each step `passed`, `failed` or `left`, and why.
        seconds: for all of them; None for as long as it takes.
        is_dry: the smallest shapes, once.
        device: `cuda` or `cpu`.
    """

    def __init__(
        self, steps: Sequence[Step], root: Path, folder: Path, seconds: float | None, is_dry: bool, device: str
    ) -> None:
        self.steps, self.root, self.folder, self.is_dry, self.device = steps, root, folder, is_dry, device
        self.deadline = None if seconds is None else time.monotonic() + seconds
        before = read(folder / STATE).get("steps", {})
        self.states: dict[str, dict[str, Any]] = {
            step.name: before.get(step.name, {"status": "left"}) for step in steps
        }
        if not any(state["status"] == "left" for state in self.states.values()):
            self.states = {step.name: {"status": "left"} for step in steps}
        self.others = {name: state for name, state in before.items() if name not in self.states}

    def run(self) -> None:
        """Run what is left, while there is time."""
        for step in self.steps:
            state = self.states[step.name]
            if state["status"] != "left" or self._left() < _LEAST:
                continue
            if not read(self.folder / step.result).get("left"):  # nothing there to go on with
                (self.folder / step.result).unlink(missing_ok=True)
            print(f"trisparse bench: {step.name}", flush=True)  # noqa: T201
            self.states[step.name] = self._run(step)
            content = {"machine": machine(), "steps": self.others | self.states}
            atomic_write(self.folder / STATE, json.dumps(content, indent=1) + "\n")

    def _left(self) -> float:
        return float("inf") if self.deadline is None else self.deadline - time.monotonic()

    def _run(self, step: Step) -> dict[str, Any]:
        """A step's state; where its process is lost, another goes on after the test that was running."""
        path, begin = self.folder / step.result, time.monotonic()
        while True:
            before = read(path)
            status = self._process(step)
            after = read(path)
            state = {"status": "passed", "seconds": round(time.monotonic() - begin, 1)}
            is_crash = status not in _BEYOND
            if status is None or (after.get("left") and self._left() < _LEAST):
                return state | {"status": "left", "reason": "no time was left"}
            advanced = len(after.get("done", [])) > len(before.get("done", [])) or after.get("running")
            if step.kind == "benchmark" and after.get("left") and advanced:
                continue
            errors = [row["error"] for row in after.get("rows", []) if "error" in row and "test" in row]
            if step.kind == "tests" and path.exists():
                errors = failures(path)
            if is_crash and step.kind != "script":
                errors.append(f"exit status {status}")
            if errors or status:
                reason = f"{len(errors)} failed, the first: {errors[0]}" if errors else f"exit status {status}"
                return state | {"status": "failed", "reason": reason}
            return state

    def _process(self, step: Step) -> int | None:
        """The exit status of one process; None if it was stopped since time was up."""
        seconds = None if self.deadline is None else max(self._left(), 1.0)
        line = command(step, self.folder, seconds, self.is_dry, self.device)
        bare = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} if step.kind == "benchmark" else {}  # they take a second
        process = subprocess.Popen(line, cwd=self.root, start_new_session=True, env=os.environ | bare)
        try:
            return process.wait(None if seconds is None else seconds + _GRACE)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):  # its workers too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def failures(path: Path) -> list[str]:
    """The tests that failed by pytest's own XML, and why."""
    cases = xml.etree.ElementTree.parse(path).iter("testcase")
    found = [(case, child) for case in cases for child in case if child.tag in ("failure", "error")]
    return [f"{case.get('name')}: {(child.get('message') or 'no message').splitlines()[0]}" for case, child in found]
