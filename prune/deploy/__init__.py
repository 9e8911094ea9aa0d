"""After pruning: channels removed, layers packed, models saved, loaded, exported, inspected and timed.

May import channels, pruner, costs, layers and config.
"""
