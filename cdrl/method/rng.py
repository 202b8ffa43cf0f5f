"""Randomness as a pure function of a key, so that a step can be replayed alone and any world draws the same noise.

A global batch consists of equal chunks; each chunk has a generator of its own, keyed by (seed, ..., chunk). A worker
that holds chunks 2 and 3 draws exactly what those chunks would be given in a single process.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Rng", "key_to_seed"]


def key_to_seed(*key: int | str) -> int:
    """A 63-bit seed from any key, equal on every machine."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Rng:
    """Draws for a batch that is the concatenation of equal chunks.

    Args:
        *key: what the randomness is a function of, e.g. (seed, "train", pair, step).
        chunks: the chunk numbers that the batch consists of, in order.
        device: where the draws are made; streams differ between CPU and CUDA.
    """

    def __init__(self, *key: int | str, chunks: Sequence[int] = (0,), device: torch.device | str = "cpu") -> None:
        self._generators = [torch.Generator(device).manual_seed(key_to_seed(*key, chunk)) for chunk in chunks]

    @property
    def num_chunks(self) -> int:
        """Chunks of the batch."""
        return len(self._generators)

    def split(self) -> list["Rng"]:
        """The same draws for each chunk alone; what one of them draws, the whole has drawn too."""
        parts = [Rng(chunks=()) for _ in self._generators]
        for part, generator in zip(parts, self._generators, strict=True):
            part._generators = [generator]
        return parts

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal noise of the shape, dtype and device of `like` (B, ...)."""
        shape = self._chunk_shape(like)
        draws = [torch.randn(shape, dtype=like.dtype, device=like.device, generator=g) for g in self._generators]
        return torch.cat(draws) if len(draws) > 1 else draws[0]

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) of the shape, dtype and device of `like` (B, ...)."""
        shape = self._chunk_shape(like)
        draws = [torch.rand(shape, dtype=like.dtype, device=like.device, generator=g) for g in self._generators]
        return torch.cat(draws) if len(draws) > 1 else draws[0]

    def _chunk_shape(self, like: Tensor) -> list[int]:
        count, remainder = divmod(len(like), len(self._generators))
        if remainder:
            raise ValueError(f"a batch of {len(like)} does not split into {len(self._generators)} equal chunks")
        return [count, *like.shape[1:]]
