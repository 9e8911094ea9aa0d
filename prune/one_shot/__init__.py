"""Pruning without training, from calibration data: the forward that feeds it, and its methods.

May import pruner, choosing, layers and config.
"""

from trisparse.prune.one_shot.once import prune_once

__all__ = ["prune_once"]
