"""Kernel-accelerated sparsity for PyTorch: scheduled, structured pruning while a model trains.

The public names load on first use; importing the package imports neither torch nor Triton. Once it and transformers are
both imported, transformers loads compressed models.
"""

import importlib
from typing import TYPE_CHECKING, Any

from trisparse.on_import import import_after

if TYPE_CHECKING:
    from trisparse.prune.config.config import PruningConfig
    from trisparse.prune.deploy.any_report import report
    from trisparse.prune.deploy.checkpoint import from_pretrained, save_pretrained
    from trisparse.prune.deploy.compact import compact
    from trisparse.prune.deploy.compress import compress, decompress
    from trisparse.prune.deploy.compress_like import compress_like
    from trisparse.prune.deploy.export import export
    from trisparse.prune.deploy.hub import push_to_hub
    from trisparse.prune.deploy.layer_spec import describe
    from trisparse.prune.errors import PruningError
    from trisparse.prune.one_shot.once import prune_once
    from trisparse.prune.pruner.callback import PruningCallback as PruningCallback
    from trisparse.prune.pruner.masked_adamw import MaskedAdamW
    from trisparse.prune.pruner.pruner import Pruner
    from trisparse.prune.pruner.report import SparsityReport

__version__ = "0.1.0"
__all__ = [  # and PruningCallback, which needs transformers
    "MaskedAdamW", "Pruner", "PruningConfig", "PruningError", "SparsityReport", "compact", "compress", "compress_like",
    "decompress", "describe", "export", "from_pretrained", "prune_once", "push_to_hub", "report", "save_pretrained",
]  # fmt: skip

_HOME = {
    "MaskedAdamW": "trisparse.prune.pruner.masked_adamw",
    "Pruner": "trisparse.prune.pruner.pruner",
    "PruningCallback": "trisparse.prune.pruner.callback",
    "PruningConfig": "trisparse.prune.config.config",
    "PruningError": "trisparse.prune.errors",
    "SparsityReport": "trisparse.prune.pruner.report",
    "compact": "trisparse.prune.deploy.compact",
    "compress": "trisparse.prune.deploy.compress",
    "compress_like": "trisparse.prune.deploy.compress_like",
    "decompress": "trisparse.prune.deploy.compress",
    "describe": "trisparse.prune.deploy.layer_spec",
    "export": "trisparse.prune.deploy.export",
    "from_pretrained": "trisparse.prune.deploy.checkpoint",
    "prune_once": "trisparse.prune.one_shot.once",
    "push_to_hub": "trisparse.prune.deploy.hub",
    "report": "trisparse.prune.deploy.any_report",
    "save_pretrained": "trisparse.prune.deploy.checkpoint",
}

import_after("transformers.quantizers.auto", "trisparse.prune.deploy.hf_quantizer")


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'trisparse' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
