"""How units are chosen: criteria besides those of the kernels, heads, N:M groups, parts of an event, lasso.

May import layers and config.
"""
