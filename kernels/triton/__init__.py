"""Triton kernels and their host functions."""
