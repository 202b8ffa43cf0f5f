"""Levels trained again into a finished run: theirs are new, the others stay bit by bit, and nothing is lost."""

from collections.abc import Iterator

import pytest

from cdrl.config import ClusterConfig, Config, override
from cdrl.data.prepare import Options, prepare
from cdrl.errors import ConfigError
from cdrl.model import Model
from cdrl.runs import RunRecord, fetch_model
from cdrl.session import connected
from cdrl.training.again import train_again
from cdrl.training.launch import launch
from tests.training_parts import tiny_config

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunRecord]:
    """A finished run with one pair for each of two levels, in a Ray session."""
    folder = tmp_path_factory.mktemp("again")
    prepare("digits", str(folder / "digits"), Options(limit=60, holdout=0))
    given = (f"data.uri={folder / 'digits'}", f"run.root={folder / 'runs'}", "run.name=base", "run.log_every=1")
    with connected(ClusterConfig(num_workers=2)):
        exact = "compute.chunkwise=always"  # two workers share the one pair that is trained again
        outcome = launch(tiny_config(*given, exact, "pairs=per_level", "cluster.num_workers=2"))
        assert outcome.complete
        yield outcome.record


def files(record: RunRecord) -> dict[str, str]:
    """Digests of the newest checkpoint's files."""
    return dict(record.checkpoints()[record.checkpoint("last")].files)


def again(record: RunRecord, *overrides: str) -> dict[str, str]:
    config: Config = override(record.config, overrides)
    assert train_again(record, config, [1]).complete
    return files(record)


def test_the_same_training_gives_the_same_pair_and_another_one_another(record: RunRecord) -> None:
    before, uri = files(record), record.checkpoint("last")
    assert again(record) == before and record.checkpoint("last") == uri  # there is nothing new to put
    other = again(record, "training.seed=9", "training.num_updates=6")
    kept = {name for name, digest in other.items() if digest == before[name]}
    assert kept == {"pair-00.safetensors", "train-00.safetensors", "sentinel.safetensors"}
    model = Model.load(fetch_model("base", "last", record.config.run.root))
    assert model.step == 12 and model.config == record.config and bool(model.sample(2).isfinite().all())
    assert record.checkpoint("last") > uri and len(record.checkpoints()) == 2
    assert RunRecord.read("base", record.config.run.root).finished
    folders = sorted(path.parent.name for path in record.directory.glob("*/run.json"))
    assert len(folders) == 2 and all(name.startswith("levels-1-") for name in folders)


def test_what_cannot_be_is_refused(record: RunRecord) -> None:
    for overrides, levels, words in (
        ((), [2], r"--levels: the run has levels 0 \.\.\. 1, got 2"),
        (("energy.width=8",), [1], "--levels: only training.* may differ from run 'base': energy.width was 4, is 8"),
    ):
        with pytest.raises(ConfigError, match=words):
            train_again(record, override(record.config, overrides), levels)
    with pytest.raises(ConfigError, match="--levels: level 1 shares its pair with 0; give all of them"):
        train_again(record, override(record.config, ["pairs=shared"]), [1])
    unfinished = record.model_copy(update={"finished": False})
    with pytest.raises(ConfigError, match="run 'base' is not finished"):
        train_again(unfinished, record.config, [1])
