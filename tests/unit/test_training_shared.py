"""A worker sees the driver's folder, or says so."""

from pathlib import Path

import pytest

from cdrl.errors import ConfigError
from cdrl.training.shared import check_shared, marked


def test_a_folder_that_is_shared_passes_and_is_left_clean(tmp_path: Path) -> None:
    with marked(str(tmp_path)) as mark:
        check_shared(str(tmp_path), mark)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("elsewhere", ["missing", "empty", "of an earlier run"])
def test_a_folder_of_another_machine_is_refused_in_one_line(tmp_path: Path, elsewhere: str) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    if elsewhere != "missing":
        there.mkdir()
    with marked(str(here)) as mark, marked(str(there if elsewhere == "of an earlier run" else tmp_path / "other")):
        with pytest.raises(ConfigError, match="run.storage: checkpoints go to .*there, .* that all machines share"):
            check_shared(str(there), mark)


def test_object_storage_needs_no_mark() -> None:
    with marked("s3://bucket/run") as mark:
        assert mark == ""
        check_shared("s3://bucket/run", mark)
