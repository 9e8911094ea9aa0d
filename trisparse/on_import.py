"""Run something once another module has been imported, without importing it ourselves."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def import_after(trigger: str, module: str) -> None:
    """Import `module` as soon as `trigger` has been; at once if it has been already."""
    if trigger in sys.modules:
        importlib.import_module(module)
    else:
        sys.meta_path.insert(0, _Watch(trigger, module))


class _Watch(importlib.abc.MetaPathFinder):
    """Finds one module as the other finders do, and steps aside."""

    def __init__(self, trigger: str, module: str) -> None:
        self.trigger, self.module = trigger, module

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.trigger:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader, self.module)
        return spec


class _Then(importlib.abc.Loader):
    """A loader that imports another module afterwards."""

    def __init__(self, loader: importlib.abc.Loader, module: str) -> None:
        self.loader, self.module = loader, module

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        importlib.import_module(self.module)
