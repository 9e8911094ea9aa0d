"""Pruning while a model trains: layers found, gradients scored, units selected, masks held, on one process or many.

May import config.
"""
