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
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.fp32_precision == "tf32" for backend in (cudnn.conv, matmul)]  # type: ignore[attr-defined]
    # read from torch's new record and written through the old one, which writes both: the compiler reads either,
    # and refuses a mixture
    try:
        cudnn.allow_tf32 = matmul.allow_tf32 = precision == "tf32"
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before
