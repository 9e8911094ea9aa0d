"""Weights in column vectors N x 1 and in blocks N x M: packed, multiplied, with gradients, and as a layer.

May import choosing.
"""
