"""Fine-tuning on a GLUE task, pruning and distilling on the way: the loop, `train`, and a file for each of its parts.

May import deploy, channels, one_shot, pruner, costs, layers, config, data.
"""
