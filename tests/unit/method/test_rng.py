"""Randomness is a pure function of its key, and a batch's is the concatenation of its chunks'."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdrl.method.rng import Rng, key_to_seed


def draws(rng: Rng, like: torch.Tensor) -> list[torch.Tensor]:
    return [rng.normal(like), rng.uniform(like), rng.normal(like)]


def test_equal_keys_draw_equal_noise_and_other_keys_other_noise() -> None:
    like = torch.empty(4, 3)
    first = draws(Rng(1, "train", 0, 7), like)
    assert all(a.equal(b) for a, b in zip(first, draws(Rng(1, "train", 0, 7), like), strict=True))
    for key in ((2, "train", 0, 7), (1, "sample", 0, 7), (1, "train", 1, 7), (1, "train", 0, 8), (1, "train", 7, 0)):
        assert not any(a.equal(b) for a, b in zip(first, draws(Rng(*key), like), strict=True))
    assert not first[0].equal(first[2])  # a stream, not a constant


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 3), st.data())
def test_concatenation_law(num_chunks: int, size: int, data: st.DataObject) -> None:
    """Any worker draws for its chunks what a single process draws for them, whatever the chunk's shape."""
    cut = data.draw(st.integers(0, num_chunks))
    shape = (5,) if data.draw(st.booleans()) else (1, 7, 7)  # below and above torch's vectorised draws
    whole = draws(Rng(3, chunks=range(num_chunks)), torch.empty(num_chunks * size, *shape))
    parts = [
        draws(Rng(3, chunks=chunks), torch.empty(len(chunks) * size, *shape))
        for chunks in (range(cut), range(cut, num_chunks))
        if chunks
    ]
    for number, draw in enumerate(whole):
        assert draw.equal(torch.cat([part[number] for part in parts]))


def test_the_parts_of_a_split_draw_what_the_whole_draws() -> None:
    whole, like = Rng(3, chunks=(1, 4, 5)), torch.empty(2, 7)
    parts = [draws(part, like) for part in Rng(3, chunks=(1, 4, 5)).split()]
    assert whole.num_chunks == len(parts) == 3
    for number, draw in enumerate(draws(whole, torch.empty(6, 7))):
        assert draw.equal(torch.cat([part[number] for part in parts]))
    whole.split()[1].normal(like)  # the same generators, further on
    assert not whole.normal(torch.empty(6, 7))[2:4].equal(parts[1][0])


def test_the_default_is_chunk_0() -> None:
    like = torch.empty(4, 2)
    assert Rng(5).normal(like).equal(Rng(5, chunks=(0,)).normal(like))
    assert not Rng(5).normal(like).equal(Rng(5, chunks=(1,)).normal(like))


def test_draws_have_the_form_of_like_and_the_named_law() -> None:
    like = torch.empty(20_000, 2, dtype=torch.float64)
    normal, uniform = Rng(0, chunks=range(4)).normal(like), Rng(0, chunks=range(4)).uniform(like)
    for draw in (normal, uniform):
        assert draw.shape == like.shape and draw.dtype == like.dtype and draw.device == like.device
    assert normal.mean().item() == pytest.approx(0, abs=0.02) and normal.std().item() == pytest.approx(1, abs=0.02)
    assert 0 <= uniform.min() and uniform.max() < 1
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.01)
    assert uniform.var().item() == pytest.approx(1 / 12, abs=0.002)


def test_torchs_own_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    draws(Rng(1), torch.empty(4))
    assert torch.rand(3).equal(expected)


def test_a_batch_that_does_not_split_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch of 5 does not split into 2 equal chunks"):
        Rng(0, chunks=(0, 1)).normal(torch.empty(5, 2))


def test_seeds_are_a_fixed_function_of_the_key() -> None:
    """Runs must be resumable on another machine and with another version: these numbers may not change."""
    assert key_to_seed(5, "train", 0, 0) == 7964088500983502696
    assert 0 <= key_to_seed() < 2**63
    assert key_to_seed(1, 23) != key_to_seed(12, 3) and key_to_seed("1") != key_to_seed(1)
