"""Scripts of benchmarks as modules."""

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load():
    """The module of a script, by its path in benchmarks/."""

    def module_of(script):
        spec = importlib.util.spec_from_file_location(Path(script).stem, FOLDER / script)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return module_of
