"""Pruning without training, from calibration data: the forward that feeds it, and its methods.

May import pruner and config.
"""

from trisparse.prune.one_shot.one_shot import prune_one_shot

__all__ = ["prune_one_shot"]
