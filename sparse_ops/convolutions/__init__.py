"""Convolutions as products of a packed matrix with what lies under their kernel.

May import blocks and two_four.
"""
