"""What a run was made with."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import accelerate
import torch
import transformers


def versions() -> dict[str, str]:
    """Of the libraries that a result depends on, and the commit if this package is used from a checkout."""
    known = {
        "trisparse": version("trisparse"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "python": platform.python_version(),
    }
    commit = commit_of(Path(__file__))
    return known if commit is None else known | {"commit": commit}


def commit_of(file: Path) -> str | None:
    """Of the checkout that tracks a file, with `-dirty` after it where tracked files were changed; None outside one."""
    file = file.resolve()
    git = ["git", "-C", str(file.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", file.name], check=True, capture_output=True)
        described = [*git, "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(described, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
