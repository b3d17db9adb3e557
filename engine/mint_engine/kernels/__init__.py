"""Kernels in C++ (`cpp`) for CPUs: compiled ahead of time (`compile`), called through ctypes (`library`).

Each has a plain torch reference beside its tests. If no compiled library fits this machine, the engine computes with
only transformers' modules and torch.
"""
