"""Read a pruning config from JSON or YAML, ours or neural-compressor's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from trisparse.prune.config.group import KEYS, SCHEDULE_KEYS
from trisparse.prune.config.neural_compressor_file import TAGS, Pruner, convert_file, is_neural_compressors
from trisparse.prune.errors import PruningError, nearest

RECIPES = Path(__file__).parent / "recipes"


class _Loader(yaml.SafeLoader):
    """YAML without its traps: `2:4` is no base-60 number, `on` no boolean, `1e-3` is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if not key.tag.endswith(":merge")]
        for key in keys:
            if keys.count(key) > 1:
                line = node.start_mark.line + 1
                raise yaml.YAMLError(f"key {key!r} is given twice in the mapping at line {line}")
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}  # the parent's table stays as it is
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:null", r"~|null|", "~n\0"),
    ("tag:yaml.org,2002:bool", r"true|false|True|False", "tfTF"),
    ("tag:yaml.org,2002:int", r"[-+]?(0|[1-9]\d*)", "-+0123456789"),
    ("tag:yaml.org,2002:float", r"[-+]?((\d+\.\d*|\.\d+)([eE][-+]?\d+)?|\d+[eE][-+]?\d+)", "-+.0123456789"),
    ("tag:yaml.org,2002:merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(
        _tag, re.compile(rf"^(?:{_pattern})$"), list(_first) + ([""] if "null" in _tag else [])
    )


def _tagged(loader: _Loader, node: yaml.Node) -> dict[str, Any]:
    """A mapping that its tag says is neural-compressor's."""
    if node.tag in TAGS and isinstance(node, yaml.MappingNode):
        return Pruner(loader.construct_mapping(node, deep=True))
    what = "wants a mapping of keys" if node.tag in TAGS else f"is not known; want no tag, or {' or '.join(TAGS)}"
    raise yaml.YAMLError(f"line {node.start_mark.line + 1}: the tag {node.tag} {what}")


_Loader.add_constructor(None, _tagged)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"key {key!r} is given twice")
    return dict(pairs)


def parse_file(path: Path) -> Any:
    """What a JSON or YAML file holds.

    Raises:
        PruningError: it can't be read or parsed.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PruningError(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        if path.suffix == ".json":
            return json.loads(text, object_pairs_hook=_no_duplicates)
        if path.suffix in (".yaml", ".yml"):
            return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise PruningError(f"{path}: is nested too deep") from None
    except (ValueError, yaml.YAMLError) as error:
        raise PruningError(f"{path}: {' '.join(str(error).split())}") from None
    raise PruningError(f"{path}: want a file that ends in .json, .yaml or .yml")


def find_config(name: str) -> Path:
    """The config of this path, or the one of this name that comes with the package.

    Raises:
        PruningError: neither is there.
    """
    return find_file(name, RECIPES)


def find_file(name: str, folder: Path) -> Path:
    """The file of this path, or the one of this name in a folder of YAML files.

    Raises:
        PruningError: neither is there.
    """
    path = Path(name)
    if path.is_file():
        return path
    recipes = sorted(p.stem for p in folder.glob("*.yaml"))
    if name in recipes:
        return folder / f"{name}.yaml"
    raise PruningError(
        f"{name}: no such file, and no recipe of that name ({', '.join(recipes)}){nearest(name, recipes)}"
    )


def read_config(path: Path, defaults: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `PruningConfig` that a file stands for; see `PruningConfig.load`.

    What changed meaning in a file of neural-compressor's is printed.

    Raises:
        PruningError: the file can't be read or is no config, or a flag that every group overrides.
    """
    content = parse_file(path)
    if is_neural_compressors(content):
        content = _converted(path, content)
    if isinstance(content, list):
        content = {"pruning_configs": content}
    if not isinstance(content, dict):
        raise PruningError(f"{path}: want a list of groups or a mapping of keys, got {type(content).__name__}")
    if odd := [key for key in content if not isinstance(key, str)]:
        raise PruningError(f"{path}: {odd[0]!r}: unknown key; want one of {', '.join(KEYS)}")
    groups = content.pop("pruning_configs", None)
    content = {key: value for key, value in content.items() if value is not None}
    keys = {**defaults, **content, **flags}
    listed = [g for g in groups if isinstance(g, dict)] if isinstance(groups, list) and groups else [{}]
    locks = [group.get("pruning_type", keys.get("pruning_type")) == "pattern_lock" for group in listed]
    if all(locks):
        keys = {key: value for key, value in keys.items() if key not in SCHEDULE_KEYS or key in {**content, **flags}}
    for flag in flags:
        if flag not in KEYS:
            raise PruningError(f"{flag}: unknown key{nearest(flag, KEYS)}")
        if all(flag in g or (lock and flag in SCHEDULE_KEYS) for g, lock in zip(listed, locks, strict=True)):
            raise PruningError(
                f"{flag}: {flags[flag]!r} has no effect: every group of {path} sets its own or has no use for it; "
                "remove the flag"
            )
    return {"pruning_configs": groups, **keys}


def _converted(path: Path, content: Any) -> dict[str, Any]:
    try:
        keys, notes = convert_file(content)
    except PruningError as error:
        raise PruningError(f"{path}: {error}") from None
    for note in notes:
        print(f"{path}: {note}")  # noqa: T201 -- asked for: the caller reads it
    return keys
