"""Which number formats a part of a step multiplies in.

fp32 and tf32 compute on the nets' own numbers (tf32 lets CUDA kernels round the factors); fp16 and bf16 cast them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

__all__ = ["Precision", "dtype_of", "fp32_kernels"]

Precision = Literal["fp32", "tf32", "fp16", "bf16"]

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def dtype_of(precision: Precision) -> torch.dtype | None:
    """The format that numbers are cast to; None = they stay as they are."""
    return _DTYPES.get(precision)


@contextmanager
def fp32_kernels(precision: Precision) -> Iterator[None]:
    """Within: CUDA kernels on float32 multiply in TF32 if `precision` is tf32, exactly otherwise."""
    backends = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        yield
    finally:
        for backend, mode in zip(backends, before, strict=True):
            backend.fp32_precision = mode
