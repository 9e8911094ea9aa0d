"""Triton kernels: tensors and integers in, tensors out."""
