"""Pruning while a model trains: gradients scored, units selected, masks held, on one process or many.

May import costs, choosing, layers and config.
"""
