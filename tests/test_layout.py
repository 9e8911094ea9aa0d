"""Where things are: which folder may import which, no circles, and one name for an operator everywhere."""

import ast
import importlib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
LAYERS = ["kernels", "sparse_ops", "prune", "trisparse"]  # each may import itself and what is left of it
# what each wing may import besides itself, and besides the files beside it that all its neighbours use
WINGS = {
    "kernels.cpu": [],
    "kernels.gpu": [],
    "sparse_ops.choosing": [],
    "sparse_ops.two_four": ["choosing"],
    "sparse_ops.blocks": ["choosing"],
    "sparse_ops.convolutions": ["blocks", "two_four"],
    "prune.config": [],
    "prune.data": [],
    "prune.layers": ["config"],
    "prune.choosing": ["layers", "config"],
    "prune.costs": ["layers", "config"],
    "prune.pruner": ["costs", "choosing", "layers", "config"],
    "prune.one_shot": ["pruner", "choosing", "layers", "config"],
    "prune.channels": ["pruner", "layers", "config"],
    "prune.deploy": ["channels", "pruner", "costs", "layers", "config"],
    "prune.glue": ["deploy", "channels", "one_shot", "pruner", "costs", "layers", "config", "data"],
    "prune.run_report": ["glue", "deploy", "channels", "one_shot", "pruner", "layers", "config", "data"],
    "prune.commands": ["run_report", "glue", "deploy", "channels", "one_shot", "pruner", "layers", "config", "data"],
}
ABOVE = {"sparse_ops", "prune"}  # stand above the wings beside them


def module_name(path):
    """`prune/glue/args.py` -> `prune.glue.args`"""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))}


def imports_of(tree, modules):
    """Names of ours that a module imports, wherever it does, for types alone too."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name.removeprefix("trisparse.") in modules else node.module for name in inside]
        for name in names:
            assert name.split(".")[0] not in LAYERS[:3], f"line {node.lineno}: {name} without trisparse."
            short = name.removeprefix("trisparse.")
            if name == "trisparse" or name.startswith("trisparse."):
                yield short if short.split(".")[0] in LAYERS else f"trisparse.{short}"


IMPORTS = {name: set(imports_of(ast.parse(path.read_text()), MODULES)) for name, path in MODULES.items()}


def against_the_arrows(name, imports):
    """What a module imports and must not."""
    layer, wing = name.split(".")[0], ".".join(name.split(".")[:2])
    for other in sorted(imports):
        other_layer, other_wing = other.split(".")[0], ".".join(other.split(".")[:2])
        if other_layer != layer:
            if LAYERS.index(other_layer) > LAYERS.index(layer):
                yield other
        elif other_wing in WINGS and other_wing != wing and name not in ABOVE:
            allowed = [f"{layer}.{below}" for below in WINGS.get(wing, [])]
            if other_wing not in allowed:
                yield other


def circle(graph):
    """Names along a circle of the graph, or none."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        path.append(name)
        for other in sorted(graph.get(name, ())):
            if other != name and (found := visit(other)):
                return found
        done.add(path.pop())
        return []

    return next((found for name in graph if (found := visit(name))), [])


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_one_way(name):
    assert list(against_the_arrows(name, IMPORTS[name])) == []


@pytest.mark.parametrize(
    ("name", "upward"),
    [
        ("prune.config.file", "prune.layers.modules"),
        ("prune.deploy.compact", "prune.one_shot.wanda"),
        ("prune.channels.find_chains", "prune.deploy.saved_names"),
        ("prune.errors", "prune.config.group"),
        ("sparse_ops.choosing.plan", "sparse_ops.blocks.spmm"),
        ("sparse_ops.library", "prune.errors"),
        ("kernels.plan", "kernels.gpu.access"),
    ],
)
def test_an_upward_import_would_be_found(name, upward):
    assert list(against_the_arrows(name, {upward})) == [upward]


def test_no_module_is_in_a_circle():
    found = circle(IMPORTS)
    assert not found, " imports ".join(found)


def test_a_circle_would_be_found():
    later = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from trisparse.prune.one import f\n"
    inside = "def f():\n    from trisparse.prune import three\n"
    modules = {"prune.one": "from trisparse.prune.two import g", "prune.two": inside, "prune.three": later}
    graph = {name: set(imports_of(ast.parse(text), modules)) for name, text in modules.items()}
    assert circle(graph) == ["prune.one", "prune.two", "prune.three", "prune.one"]
    assert circle({**graph, "prune.three": set()}) == []


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_says_what_lives_there_and_what_it_may_import(wing):
    said = ast.get_docstring(ast.parse(MODULES[wing].read_text()))
    assert 2 <= len(said.splitlines()) <= 5
    assert all(below in said for below in WINGS[wing])


def test_no_wing_is_forgotten():
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert packages == {*LAYERS, *WINGS}


def test_an_operator_has_one_name_everywhere():
    importlib.import_module("trisparse.sparse_ops")
    names = {
        schema.name.split("::")[1]
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("trisparse::")
    }
    assert names
    for name in names:
        (home,) = [module for module in MODULES if module.startswith("sparse_ops.") and module.endswith(f".{name}")]
        assert f"kernels.gpu.{name}" in MODULES
        assert callable(getattr(importlib.import_module(f"trisparse.{home}"), name))


def test_tests_hold_no_importable_helpers():
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_tests_and_benchmarks_mirror_the_wings():
    for top in ("tests", "benchmarks"):
        for layer in LAYERS[:3]:
            folders = [path for path in (ROOT / top / layer).glob("*") if path.is_dir() and path.name[0] not in "._"]
            assert {f"{layer}.{folder.name}" for folder in folders} <= set(WINGS)
    assert {name.replace(".", "/") for name in WINGS} == {
        str(path.relative_to(ROOT / "tests"))
        for path in (ROOT / "tests").glob("*/*")
        if path.is_dir() and path.name[0] != "_"
    }
