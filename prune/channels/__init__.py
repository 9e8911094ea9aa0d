"""Which channels and heads can go: what a layer makes is followed to all that reads it, and cut in both.

May import pruner, layers and config.
"""
