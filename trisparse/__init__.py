"""Kernel-accelerated sparsity for PyTorch: scheduled, structured pruning while a model trains.

The public names load on first use; importing the package imports neither torch nor Triton. Once it and transformers are
both imported, transformers loads compressed models.
"""

import importlib
from typing import TYPE_CHECKING, Any

from trisparse.on_import import import_after

if TYPE_CHECKING:
    from trisparse.prune.callback import PruningCallback as PruningCallback
    from trisparse.prune.checkpoint import from_pretrained, save_pretrained
    from trisparse.prune.compact import compact
    from trisparse.prune.compress import compress, decompress
    from trisparse.prune.config import PruningConfig
    from trisparse.prune.errors import PruningError
    from trisparse.prune.export import export
    from trisparse.prune.masked_adamw import MaskedAdamW
    from trisparse.prune.once import prune_once
    from trisparse.prune.pruner import Pruner
    from trisparse.prune.report import SparsityReport

__version__ = "0.1.0"
__all__ = [  # and PruningCallback, which needs transformers
    "MaskedAdamW", "Pruner", "PruningConfig", "PruningError", "SparsityReport", "compact", "compress", "decompress",
    "export", "from_pretrained", "prune_once", "save_pretrained",
]  # fmt: skip

_HOME = {
    "MaskedAdamW": "trisparse.prune.masked_adamw",
    "Pruner": "trisparse.prune.pruner",
    "PruningCallback": "trisparse.prune.callback",
    "PruningConfig": "trisparse.prune.config",
    "PruningError": "trisparse.prune.errors",
    "SparsityReport": "trisparse.prune.report",
    "compact": "trisparse.prune.compact",
    "compress": "trisparse.prune.compress",
    "decompress": "trisparse.prune.compress",
    "export": "trisparse.prune.export",
    "from_pretrained": "trisparse.prune.checkpoint",
    "prune_once": "trisparse.prune.once",
    "save_pretrained": "trisparse.prune.checkpoint",
}

import_after("transformers.quantizers.auto", "trisparse.prune.hf_quantizer")


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'trisparse' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
