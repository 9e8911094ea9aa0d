"""Pruning without training, from calibration data: the forward that feeds it, and its methods.

May import pruner and config.
"""

from trisparse.prune.one_shot.one_shot import prune_one_shot
from trisparse.prune.one_shot.retrain_free import prune_retrain_free

__all__ = ["prune_one_shot", "prune_retrain_free"]
