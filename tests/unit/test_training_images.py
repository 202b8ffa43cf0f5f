"""Training images come from the shards or from a copy on the device, the same either way."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cdrl.config import Config
from cdrl.data import Dataset
from cdrl.data.prepare import Options, prepare
from cdrl.training.images import Images
from tests.training_parts import digits, run_to, tiny_config, tiny_state


@pytest.mark.parametrize("resident", ["auto", "always", "never"])
def test_the_images_of_the_dataset_in_the_stored_format(tmp_path: Path, resident: str) -> None:
    dataset, numbers = digits(tmp_path), np.array([7, 0, 59, 7])
    images = Images(dataset, torch.device("cpu"), resident)(numbers)
    assert images.dtype == torch.uint8 and np.array_equal(images.numpy(), dataset.images(numbers))


def test_a_stream_trains_on_the_order_of_its_windows(tmp_path: Path) -> None:
    prepare("digits", str(tmp_path), Options(shard_rows=10, limit=60, holdout=0))

    def weights(config: Config) -> torch.Tensor:
        state = tiny_state(config)
        run_to(state, Dataset.of(config.data), 9)  # into the second epoch
        return torch.cat([weight.detach().flatten() for weight in state.pair(0).energy.parameters()])

    whole = tiny_config(f"data.uri={tmp_path}")
    stream = tiny_config(f"data.uri={tmp_path}", "data.stream=true", "data.window=2")
    assert torch.equal(weights(stream), weights(stream))
    assert not torch.equal(weights(stream), weights(whole))
