"""Kernels of the training pass, random inputs for them, and the tolerances of their results."""

import torch

from mint_engine.training.kernels import TrainingKernels, find_training_kernels

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2}
DTYPES = list(TOLERANCE)


def kernels_of(dtype: torch.dtype) -> TrainingKernels:
    kernels = find_training_kernels(dtype, torch.device("cpu"))
    assert kernels is not None, "run `make kernels`"
    return kernels


def normal(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def near(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    found, expected = found.detach().double(), expected.detach().double()
    assert float((found - expected).norm() / expected.norm()) < TOLERANCE[dtype]
