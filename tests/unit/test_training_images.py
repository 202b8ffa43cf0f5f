"""Training images come from the shards or from a copy on the device, the same either way."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cdrl.training.images import Images
from tests.training_parts import digits


@pytest.mark.parametrize("resident", ["auto", "always", "never"])
def test_the_images_of_the_dataset_in_the_stored_format(tmp_path: Path, resident: str) -> None:
    dataset, numbers = digits(tmp_path), np.array([7, 0, 59, 7])
    images = Images(dataset, torch.device("cpu"), resident)(numbers)
    assert images.dtype == torch.uint8 and np.array_equal(images.numpy(), dataset.images(numbers))
