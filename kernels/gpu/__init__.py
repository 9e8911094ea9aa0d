"""Triton kernels and their launchers, one file an operator, and the device functions that they share.

May import what lies in `kernels/` itself.
"""
