"""What an evaluation keeps in S3: statistics of real data and finished parts; and weights that come from there."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from cdrl import storage
from cdrl.config import override
from cdrl.data import Dataset
from cdrl.data.prepare import Options, prepare
from cdrl.errors import DataError
from cdrl.evaluation.extractor import Coordinates
from cdrl.evaluation.features import extractor_for
from cdrl.evaluation.parts import Part, Shelf
from cdrl.evaluation.statistics import split_statistics
from tests.evaluation_parts import blank_inception, digits, tiny_config

pytestmark = pytest.mark.integration


def test_statistics_and_parts(s3: str, tmp_path: Path) -> None:
    prepare("checkerboard", str(tmp_path), Options(limit=300))
    points = Dataset.open(str(tmp_path))
    folder = storage.join(s3, "statistics")
    first, again = (split_statistics(points, "train", Coordinates(), folder) for _ in range(2))
    assert len(storage.listing(folder)) == 1
    assert (first.rows == again.rows).all() and (first.moments.scatter == again.moments.scatter).all()
    shelf = Shelf(storage.join(s3, "parts", "one"))
    rows = points.images(np.arange(20))
    shelf.write(Part(40, rows, rows, 1.5))
    found = shelf.read(40, 60)
    assert found is not None and (found.images == rows).all() and found.seconds == 1.5
    assert shelf.read(0, 40) is None
    shelf.clear()
    assert shelf.read(40, 60) is None


def test_weights_come_from_s3_by_their_digest(s3: str, tmp_path: Path) -> None:
    uri, content = storage.join(s3, "weights.pt"), blank_inception(tmp_path).read_bytes()
    storage.write_bytes(uri, content)
    config = override(
        tiny_config(digits(tmp_path), tmp_path), ["evaluation.extractor=inception", f"evaluation.weights={uri}"]
    )
    train = Dataset.open(config.data.uri)
    with pytest.raises(DataError, match=f"{uri}: expected Inception weights of SHA-256 aaaaaaaaaaaa..., got"):
        extractor_for(override(config, [f"evaluation.weights_sha256={'a' * 64}"]), train, None)
    right = hashlib.sha256(content).hexdigest()
    found = extractor_for(override(config, [f"evaluation.weights_sha256={right}"]), train, None)
    assert found.digest == right and found.features(train.images(np.arange(2))).shape == (2, 2048)
