"""One level from another run, and further images for a gate that is not sure: real digits, tiny untrained models."""

from contextlib import suppress
from dataclasses import replace as changed
from itertools import islice
from pathlib import Path

import pytest
import torch

from cdrl import config as configuration
from cdrl.config import Config
from cdrl.errors import ConfigError, GateFailed, RegistryError
from cdrl.evaluation.evaluate import evaluate
from cdrl.evaluation.run import evaluate_run
from cdrl.model import Model
from cdrl.registry.further import further_differences
from cdrl.registry.promote import promote
from cdrl.registry.replace import put_together, replace
from cdrl.registry.versions import Registry
from cdrl.runs import RunRecord
from cdrl.weights import pair_file
from tests.evaluation_parts import digits, tiny_config, tiny_run


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = tmp_path_factory.mktemp("replace")
    return configuration.override(tiny_config(digits(root / "digits"), root), ["pairs=per_level"])


def run_of(config: Config, seed: int) -> RunRecord:
    """A tracked run whose weights are a little different for each seed."""
    record = tiny_run(configuration.override(config, [f"training.seed={seed}"]))
    folder = Path(record.checkpoint("last"))
    model = Model.load(folder)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.ladder.parameters():
            weight.add_(1e-3 * weight.abs().mean() * torch.randn_like(weight))
    model.write(folder)
    return record


@pytest.fixture(scope="module")
def first(config: Config) -> RunRecord:
    record = run_of(config, 1)
    evaluate_run(record)
    return record


@pytest.fixture(scope="module")
def second(config: Config) -> RunRecord:
    record = run_of(config, 2)
    evaluate_run(record)
    return record


@pytest.fixture(scope="module")
def registry(first: RunRecord, second: RunRecord, config: Config) -> Registry:
    found = Registry(first.tracking_uri)
    for record in (first, second):
        found.register(record.run_id, root=config.run.root)
    promote(found, "tiny", "1")
    return found


def folder_of(record: RunRecord) -> Path:
    return Path(record.checkpoint("last"))


def test_a_level_is_taken_from_the_other_run_and_the_rest_stays(
    first: RunRecord, second: RunRecord, tmp_path: Path
) -> None:
    model = put_together(folder_of(first), folder_of(second), [1], tmp_path)
    for number, source in enumerate((first, second)):
        assert (tmp_path / pair_file(number)).read_bytes() == (folder_of(source) / pair_file(number)).read_bytes()
    ours, theirs = Model.load(folder_of(first)), Model.load(folder_of(second))
    assert model.config == ours.config and model.digest not in (ours.digest, theirs.digest)
    model.ladder.pairs[1].load_state_dict(ours.ladder.pairs[1].state_dict())
    assert torch.equal(model.sample(2, labels=1), ours.sample(2, labels=1))


def test_the_new_version_is_scored_as_its_base_and_asks_the_gates(
    registry: Registry, first: RunRecord, second: RunRecord, config: Config
) -> None:
    version = replace(registry, "tiny@champion", [1], second.run_id, root=config.run.root)
    base = registry.find("tiny/1")
    assert version.scorecard is not None and base.scorecard is not None
    assert version.scorecard.protocol == base.scorecard.protocol
    assert version.scorecard.model_digest == version.model_digest != base.model_digest
    assert version.made_from == f"tiny/1 with level 1 of {second.run_id}" and version.run_id == ""
    assert registry.find(f"tiny/{first.run_id}").number == 1, "the run did not make the new one"
    with suppress(GateFailed):
        promote(registry, "tiny", str(version.number), overrides=["gates.min_images_per_s=1e9"])
    assert "below gates.min_images_per_s" in registry.find(f"tiny/{version.number}").gate
    assert replace(registry, "tiny/1", [1], second.run_id, root=config.run.root) == registry.find(
        f"tiny/{version.number}"
    )


@pytest.mark.parametrize(
    "settings, message",
    [
        (["schedule.warp=1.5"], "its levels do not fit: schedule.warp: 1.0 against 1.5"),
        (["energy.width=8"], "energy.width: 4 against 8"),
        (["pairs=shared"], "pairs.of levels: per_level against shared"),
        (["initializer=null", "training.num_steps=1"], "initializer.kind: unet against None"),
    ],
)
def test_levels_that_do_not_fit_are_refused(
    first: RunRecord, config: Config, tmp_path: Path, settings: list[str], message: str
) -> None:
    stranger = tiny_run(configuration.override(config, settings))
    with pytest.raises(RegistryError, match=message):
        put_together(folder_of(first), folder_of(stranger), [1], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_other_refusals(first: RunRecord, second: RunRecord, config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the run has levels 0 ... 1, got 2"):
        put_together(folder_of(first), folder_of(second), [2], tmp_path)
    with pytest.raises(RegistryError, match="the weights are the same in both; nothing to replace"):
        put_together(folder_of(first), folder_of(first), [0], tmp_path)
    shared = tiny_run(configuration.override(config, ["pairs=shared", "training.seed=8"]))
    with pytest.raises(ConfigError, match="level 1 shares its pair with 0"):
        put_together(folder_of(shared), folder_of(shared), [1], tmp_path)
    folder = tmp_path / "other"
    folder.mkdir()
    changed(Model.load(folder_of(second)), manifest_digest="ef" * 32).write(folder)
    with pytest.raises(RegistryError, match="trained on data efefefefefef, expected"):
        put_together(folder_of(first), folder, [1], tmp_path)


def test_further_sets_are_what_an_evaluation_with_the_next_seeds_would_give(
    registry: Registry, first: RunRecord, second: RunRecord, config: Config
) -> None:
    card = registry.find("tiny/1").scorecard
    assert card is not None
    found = list(islice(further_differences(folder_of(second), folder_of(first), card.protocol, []), 2))
    for number, difference in enumerate(found, start=1):
        pair = []
        for record in (second, first):
            seeded = configuration.override(record.config, [f"evaluation.seed={card.protocol.seed + number}"])
            pair.append(evaluate(folder_of(record), seeded).card.scores["frechet"] or 0)
        assert difference == pytest.approx(pair[0] - pair[1], abs=1e-6 * pair[0])
    assert found[0] != found[1]


def test_further_sets_that_would_be_measured_in_another_way_are_refused(registry: Registry, first: RunRecord) -> None:
    card = registry.find("tiny/1").scorecard
    assert card is not None
    other = card.protocol.model_copy(update={"extractor_digest": "00" * 32, "num_reference": 7})
    with pytest.raises(ConfigError, match="extractor_digest: '0000.*; num_reference: 7 against 400; give the settings"):
        next(further_differences(folder_of(first), folder_of(first), other, []))


def test_a_gate_that_is_not_sure_asks_for_further_sets_and_no_more_than_it_may(registry: Registry) -> None:
    asked: list[str] = []

    def progress(what: str, done: int, total: int) -> None:
        if done == total:
            asked.append(what)

    with suppress(GateFailed):
        promote(registry, "tiny", "2", overrides=["gates.max_sets=2", "gates.confidence=0.999999"], progress=progress)
    assert "not clear over 3 sets of images" in registry.find("tiny/2").gate
    assert asked == [f"set {number} of the {name}" for number in (1, 2) for name in ("candidate", "champion")]
