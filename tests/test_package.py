"""The package as installed: names, what it pulls in, what the wheel holds."""

import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import trisparse

ROOT = Path(__file__).parent.parent
LAYERS = ["kernels", "sparse_ops", "prune", "trisparse"]


def run(code, *flags):
    return subprocess.run(
        [sys.executable, *flags, "-c", code],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )


def test_the_cpu_path_imports_neither_triton_nor_transformers():
    code = """
import sys
sys.modules["triton"] = sys.modules["transformers"] = None  # as if they were not installed
import torch, trisparse
for name in trisparse.__all__:
    getattr(trisparse, name)
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
print(trisparse.prune_once(model, pattern="2:4").pruned_layers)
"""
    result = run(code)
    assert result.stdout == "0.5\n", result.stderr


def test_import_is_lazy():
    assert run("import sys, trisparse; print('torch' in sys.modules)").stdout == "False\n"
    assert run("import sys, trisparse; trisparse.PruningConfig; print('torch' in sys.modules)").stdout == "False\n"


def test_public_names():
    assert trisparse.__all__ == [
        "MaskedAdamW", "Pruner", "PruningConfig", "PruningError", "SparsityReport", "compact", "compress",
        "compress_like", "decompress", "describe", "export", "from_pretrained", "prune_once", "push_to_hub", "report",
        "save_pretrained",
    ]  # fmt: skip
    assert trisparse.PruningCallback.__doc__
    assert all(getattr(trisparse, name).__doc__ for name in trisparse.__all__)
    assert {*trisparse.__all__, "PruningCallback"} <= set(dir(trisparse))
    with pytest.raises(AttributeError, match="no attribute 'prune_twice'"):
        trisparse.prune_twice  # noqa: B018


def test_the_name_kernels_is_not_ours():
    """Hugging Face owns a package of that name, and transformers imports it."""

    def ours(spec):
        return spec is not None and spec.origin is not None and Path(spec.origin).is_relative_to(ROOT)

    assert not ours(importlib.util.find_spec("kernels"))
    scripts = Path(sysconfig.get_path("scripts"))
    for script in ("trisparse-glue", "trisparse-demo"):
        text = (scripts / script).read_text()
        head = text.replace("if __name__ == '__main__':", "if False:").replace(
            'if __name__ == "__main__":', "if False:"
        )
        probe = "\nimport importlib.util; print(importlib.util.find_spec('kernels'))\n"
        copy = scripts / f".{script}-probe"
        copy.write_text(head + probe)
        try:
            result = subprocess.run([sys.executable, str(copy)], capture_output=True, text=True, cwd=ROOT)
        finally:
            copy.unlink()
        assert str(ROOT) not in result.stdout, result.stdout
        assert result.returncode == 0, result.stderr


def test_the_wheel_holds_every_tracked_file_and_nothing_at_the_top(tmp_path):
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not listed:
        pytest.skip("not a git checkout")
    source = tmp_path / "source"  # a copy, since setuptools puts into a wheel what an earlier build left behind
    for name in listed:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True, cwd=tmp_path, capture_output=True)
    tracked = [name for name in listed if name.split("/")[0] in LAYERS]
    (wheel,) = tmp_path.glob("*.whl")
    names = [n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n]
    assert all(n.startswith("trisparse/") for n in names)
    want = {p if p.startswith("trisparse/") else f"trisparse/{p}" for p in tracked}
    assert set(names) == want
