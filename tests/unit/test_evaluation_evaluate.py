"""From a model to its score card, with a tiny untrained model of real digits."""

import copy
import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from cdrl import config as configuration
from cdrl.config import Config
from cdrl.data.prepare import Options, prepare
from cdrl.errors import ConfigError, DataError
from cdrl.evaluation.curve import CurveCard, Setting, score_curve
from cdrl.evaluation.curve_picture import curve_picture
from cdrl.evaluation.evaluate import Evaluation, evaluate
from cdrl.evaluation.fidelity import Measured, measure
from cdrl.evaluation.generate import draw, reference_labels
from cdrl.evaluation.protocol import ScoreCard
from cdrl.evaluation.reference import QuickScore, Reference
from cdrl.model import Model
from tests.evaluation_parts import digits, tiny_config, tiny_model


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def config(root: Path) -> Config:
    return tiny_config(digits(root / "digits"), root)


@pytest.fixture(scope="module")
def model(root: Path, config: Config) -> Path:
    return tiny_model(config, root / "model")


@pytest.fixture(scope="module")
def evaluation(model: Path, config: Config) -> Evaluation:
    return evaluate(model, config, run_id="tiny-1", which="best")


@pytest.mark.parametrize("counts, n", [((0, 3, 3, 3), 30), ((2, 5, 1), 17), ((0, 1, 0, 9), 4), ((5,), 3)])
def test_labels_keep_the_proportions_of_the_reference(counts: tuple[int, ...], n: int) -> None:
    labels = reference_labels(counts, n, seed=1)
    drawn = np.bincount(labels, minlength=len(counts))
    assert drawn.sum() == n
    assert (np.abs(drawn - np.array(counts) * n / sum(counts)) <= 1).all()
    assert (labels == reference_labels(counts, n, seed=1)).all()


def test_labels_are_shuffled_by_the_seed() -> None:
    labels = reference_labels((0, 50, 50), 100, seed=1)
    assert len(set(labels[:20])) == 2
    assert (labels != reference_labels((0, 50, 50), 100, seed=2)).any()


def test_the_card_says_what_was_measured(evaluation: Evaluation, model: Path, config: Config) -> None:
    card = evaluation.card
    loaded = Model.load(model)
    assert (card.model_digest, card.config_digest, card.step) == (loaded.digest, config.digest, 3)
    assert (card.run_id, card.which) == ("tiny-1", "best")
    protocol = card.protocol
    assert (protocol.metric, protocol.num_generated, protocol.num_reference) == ("FD (digits-cnn)", 40, 400)
    assert (protocol.manifest_digest, protocol.labels) == (loaded.manifest_digest, "as reference")
    assert protocol.sampling == config.sampling
    assert card.k0_sampling is not None
    assert (card.k0_sampling.num_steps, card.k0_sampling.denoise_scale) == (0, 0)
    assert card.floor_of == "100 real images of the hold-out split against 400 of train"
    assert card.floor["label_accuracy"] == protocol.judge_accuracy


def test_every_figure_has_an_error_bar_and_its_caveats(evaluation: Evaluation) -> None:
    card = evaluation.card
    assert card.k0 is not None and card.num_resamples == 100
    pairs = (card.scores, card.errors), (card.k0, card.k0_errors), (card.floor, card.floor_errors)
    for scores, errors in pairs:
        assert list(scores) == list(errors) and len(scores) == 6
        assert all(np.isfinite(value) for value in (*scores.values(), *errors.values()) if value is not None)
    assert card.scores["inception"] is not None and 1 <= card.scores["inception"] <= 10
    assert card.notes[0].startswith("40 generated images: FD (digits-cnn) is biased upwards")
    found = card.memorisation
    assert found is not None and (found.num_generated, found.num_heldout, found.num_train) == (40, 100, 400)
    assert found.nearer < 0.2, "an untrained model is far from all data"


class Interrupted(Exception):
    pass


def test_an_evaluation_that_was_killed_goes_on(
    evaluation: Evaluation, model: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two parts of three were done; one of them is damaged since. Neither is believed nor made again in vain."""

    def stop(what: str, done: int, total: int) -> None:
        if (what, done) == ("images at K = 1", 32):
            raise Interrupted

    parts = str(tmp_path / "parts")
    with pytest.raises(Interrupted):
        evaluate(model, config, parts=parts, progress=stop)
    first, second = sorted(tmp_path.rglob("*.part"))
    content = second.read_bytes()
    second.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    drawn: list[int] = []

    def noted(*args: Any, **given: Any) -> Any:
        drawn.append(given["first"])
        return draw(*args, **given)

    monkeypatch.setattr("cdrl.evaluation.generate.draw", noted)
    again = evaluate(model, config, parts=parts)
    assert drawn[:2] == [16, 32], "the first part was not drawn again, the damaged one was"
    assert (again.card.scores, again.card.errors) == (evaluation.card.scores, evaluation.card.errors)
    another = configuration.override(config, ["evaluation.seed=2"])
    with pytest.raises(Interrupted):
        evaluate(model, another, parts=parts, progress=stop)
    assert drawn[-1] == 16, "parts of another protocol are other parts"
    again.write(tmp_path / "card")
    assert len(list(tmp_path.rglob("*.part"))) == 2, "those of the finished evaluation are gone, the others stay"


def test_noise_scores_far_above_the_floor(evaluation: Evaluation) -> None:
    card = evaluation.card
    assert card.k0 is not None and card.scores["frechet"] is not None and card.floor["frechet"] is not None
    assert card.scores["frechet"] > 10 * card.floor["frechet"]
    assert card.k0 != card.scores
    for scores in (card.scores, card.k0, card.floor):
        assert all(0 <= (scores[name] or 0) <= 1 for name in ("precision", "recall", "label_accuracy"))


def test_the_same_call_gives_the_same_scores(evaluation: Evaluation, model: Path, config: Config) -> None:
    again = evaluate(model, config).card
    assert (again.scores, again.k0, again.floor) == (evaluation.card.scores, evaluation.card.k0, evaluation.card.floor)
    assert again.protocol == evaluation.card.protocol


def test_it_is_written_whole(evaluation: Evaluation, tmp_path: Path) -> None:
    evaluation.write(tmp_path)
    card = evaluation.card
    named = f"score-{card.protocol.digest[:8]}-{card.model_digest[:8]}.json"
    shown = {"comparison", "energies", "grid", "nearest", "path", "samples", "schedule"}
    names = {*(f"{name}.png" for name in shown), "latest.json", "report.html", named}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert ScoreCard.model_validate_json((tmp_path / "latest.json").read_text()) == card


def test_pictures_have_a_row_per_class(evaluation: Evaluation) -> None:
    samples, comparison = evaluation.pictures["samples"], evaluation.pictures["comparison"]
    assert samples.width / samples.height == pytest.approx(16 / 10, rel=0.02)
    assert comparison.width > 3 * comparison.height * 0.7, "three panels of 8 x 10"


def test_progress_is_told(model: Path, config: Config) -> None:
    seen: list[tuple[str, int, int]] = []
    evaluate(model, config, progress=lambda what, done, total: seen.append((what, done, total)))
    assert [done for what, done, _ in seen if what == "images at K = 1"] == [0, 16, 32, 40]
    assert seen[-1] == ("images at K = 0", 40, 40)


def test_an_unconditional_model_without_holdout(tmp_path: Path) -> None:
    config = tiny_config(digits(tmp_path / "digits", holdout=0), tmp_path, num_classes=0)
    card = evaluate(tiny_model(config, tmp_path / "model"), config).card
    assert (card.protocol.labels, card.protocol.judge_digest) == ("none", None)
    assert card.scores["label_accuracy"] is None
    assert card.floor_of == "no hold-out split: 250 real images of train against the other 250"
    assert card.num_floor == 250


def test_points(tmp_path: Path) -> None:
    prepare("checkerboard", str(tmp_path / "points"), Options(limit=400))
    tree = {
        "name": "points",
        "data": {"uri": str(tmp_path / "points"), "shape": [2]},
        "schedule": {"num_levels": 2},
        "energy": {"kind": "mlp", "width": 8, "num_blocks": 1},
        "initializer": {"kind": "mlp", "width": 8, "groups": 2},
        "sampling": {"num_steps": 1, "batch_size": 50, "denoise_scale": 0},
        "evaluation": {"extractor": "coordinates", "num_samples": 100},
    }
    config = configuration.validate(tree, "test")
    found = evaluate(tiny_model(config, tmp_path / "model"), config)
    assert found.card.protocol.metric == "FD (coordinates)"
    assert found.card.floor["frechet"] is not None and found.card.scores["frechet"] is not None
    assert found.card.floor["frechet"] < found.card.scores["frechet"]
    assert set(found.pictures) == {"samples", "comparison", "schedule", "energies"}


def test_a_model_of_other_data(config: Config, model: Path, tmp_path: Path) -> None:
    digits(tmp_path, holdout=200)
    with pytest.raises(ConfigError, match="data.uri: the model was trained on the dataset .* --set data.uri="):
        evaluate(model, configuration.override(config, [f"data.uri={tmp_path}"]))


def test_a_setting_that_training_fixed(config: Config, model: Path) -> None:
    with pytest.raises(ConfigError, match="this model has another configuration"):
        evaluate(model, configuration.override(config, ["schedule.num_levels=3"]))


def test_no_data(config: Config, model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no dataset here"):
        evaluate(model, configuration.override(config, [f"data.uri={tmp_path}"]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu(config: Config) -> None:
    with pytest.raises(ConfigError, match="cluster.use_gpu: torch sees no GPU"):
        Reference(config, "cuda")


def broken(model: Path) -> Model:
    loaded = Model.load(model)
    for parameter in loaded.ladder.parameters():
        parameter.fill_(float("nan"))
    return loaded


def test_values_that_are_not_finite_are_no_images(model: Path, config: Config) -> None:
    with pytest.raises(ConfigError, match="5 of 5 samples are not finite"):
        draw(broken(model), 5, labels=None, sampling=config.sampling, seed=0)


def test_the_quick_score_is_the_distance_of_its_samples(model: Path, config: Config) -> None:
    loaded = Model.load(model)
    state = torch.get_rng_state()
    score = copy.deepcopy(QuickScore(config))
    reference = Reference(config, "cpu")
    images = draw(loaded, 40, labels=reference.labels(40), sampling=config.sampling, seed=config.evaluation.seed)
    assert score(loaded) == score(loaded) and score(loaded)[0] == reference.frechet(images)
    assert 0 < score(loaded)[1] < score(loaded)[0]
    assert torch.equal(torch.get_rng_state(), state), "training's random state is its own"
    with pytest.raises(ConfigError, match="not finite"):
        score(broken(model))


class Rank(NamedTuple):
    """A member of a team of threads."""

    rank: int
    world: int
    tables: dict[int, Tensor]
    barrier: threading.Barrier

    def sum(self, table: Tensor) -> Tensor:
        self.tables[self.rank] = table
        self.barrier.wait()
        total = torch.stack(list(self.tables.values())).sum(0)
        self.barrier.wait()
        return total


@pytest.mark.parametrize("world", [2, 5])
def test_ranks_share_the_images_of_the_quick_score(model: Path, config: Config, world: int) -> None:
    """Whoever draws them, they are the same; a rank without any opens no data."""
    loaded = Model.load(model)
    ranks = [Rank(rank, world, {}, threading.Barrier(world)) for rank in range(world)]
    ranks = [each._replace(tables=ranks[0].tables, barrier=ranks[0].barrier) for each in ranks]
    scores = [QuickScore(config) for _ in ranks]
    with ThreadPoolExecutor(world) as pool:
        found = list(pool.map(lambda score, rank: score(loaded, rank), scores, ranks))
    assert found[0] == pytest.approx(QuickScore(config)(loaded), rel=1e-9)
    assert all(math.isnan(value) for each in found[1:] for value in each)
    assert [score._reference is None for score in scores] == [rank >= 3 for rank in range(world)]  # 3 sampling batches


def test_overrides_of_a_finished_run(config: Config) -> None:
    changed = configuration.override(config, ["evaluation.num_samples=7", "sampling={num_steps: 3}"])
    assert (changed.evaluation.num_samples, changed.sampling.num_steps, changed.sampling.batch_size) == (7, 3, 16)
    assert changed.identity == config.identity
    assert json.loads(config.model_dump_json()) == json.loads(configuration.override(config, []).model_dump_json())
    with pytest.raises(ConfigError, match="evaluation.num_sample: unknown setting; did you mean 'num_samples'"):
        configuration.override(config, ["evaluation.num_sample=7"])


def test_a_curve_starts_where_the_evaluation_is(evaluation: Evaluation, model: Path, config: Config) -> None:
    """A point is what `evaluate` finds at that setting, protocol and all; the next differs in that setting alone."""
    found = score_curve(model, config, "guidance", [0.0, 2.0], run_id="tiny-1", which="best")
    first, second = found.card.points
    assert (first.scores, first.protocol) == (evaluation.card.scores, evaluation.card.protocol)
    assert second.scores != first.scores
    assert second.protocol.sampling == config.sampling.model_copy(update={"guidance": 2.0})
    assert second.protocol.model_copy(update={"sampling": config.sampling}) == first.protocol
    assert (found.card.floor, found.card.model_digest) == (evaluation.card.floor, evaluation.card.model_digest)
    assert CurveCard.model_validate_json(found.card.model_dump_json()) == found.card
    assert [len(shown) for shown in found.shown] == [20, 20] and (found.shown[0] != found.shown[1]).any()
    assert curve_picture(found).width > 1000


def test_a_curve_over_steps_ends_at_the_initializer(evaluation: Evaluation, model: Path, config: Config) -> None:
    without = configuration.override(config, ["sampling.denoise_scale=0"])
    points = score_curve(model, without, "num_steps", [1, 0]).card.points
    assert points[1].scores == evaluation.card.k0 and points[0].scores != points[1].scores


@pytest.mark.parametrize(
    ("setting", "values", "message"),
    [
        ("guidance", [1.0, 1.0], r"sampling.guidance: expected different values, got \[1.0, 1.0\]"),
        ("guidance", [], "sampling.guidance: expected different values"),
        ("guidance", [0.0, float("nan")], "sampling.guidance: Input should be a finite number"),
        ("num_steps", [1, -1], "sampling.num_steps: Input should be greater than or equal to 0, got -1"),
        ("step_multiplier", [0.0], "sampling.step_multiplier: Input should be greater than 0"),
    ],
)
def test_curves_that_make_no_sense(
    model: Path, config: Config, setting: Setting, values: list[float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        score_curve(model, config, setting, values)
    unconditional = configuration.override(config, ["data.num_classes=0"])
    with pytest.raises(ConfigError, match="guidance: the model is unconditional"):
        score_curve(model, unconditional, "guidance", [0.0, 1.0])


def test_real_images_are_looked_at_once(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept under the digests of data, split and net; damaged, they are computed again."""
    kept = configuration.override(config, [f"evaluation.statistics={tmp_path / 'kept'}"])
    first = Reference(kept, "cpu")
    assert first.held_out is not None and len(list((tmp_path / "kept").iterdir())) == 2
    seen: list[int] = []

    def noted(*args: Any) -> Measured:
        seen.append(args[1])
        return measure(*args)

    monkeypatch.setattr("cdrl.evaluation.statistics.measure", noted)
    again = Reference(kept, "cpu")
    for one, two in ((first.measured, again.measured), (first.held_out, again.held_out)):
        assert two is not None and (one.rows == two.rows).all() and one.moments.n == two.moments.n
        assert torch.equal(one.moments.mean, two.moments.mean)
        assert torch.equal(one.moments.scatter, two.moments.scatter)
    assert not seen
    for place in (tmp_path / "kept").iterdir():
        place.write_bytes(place.read_bytes()[:-1])
    assert (Reference(kept, "cpu").measured.rows == first.measured.rows).all() and seen == [400]
