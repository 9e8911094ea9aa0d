"""Kernels for CPUs in C++, compiled on first use for this machine, and their launchers, one file an operator.

May import what lies in `kernels/` itself.
"""
