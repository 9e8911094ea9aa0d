"""Kernels: tensors and integers in, tensors out.

`gpu/` holds what is written in Triton. What both sides of an operator share lies here: the layouts of packed weights,
and the tables that one launch for many layers reads. A backend for CPUs has its place beside `gpu/`.
"""
