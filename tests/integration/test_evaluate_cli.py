"""`cdrl evaluate` on a tracked run, and samples that are the same for any number of Ray workers."""

import os
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest
import ray
from typer.testing import CliRunner

from cdrl.cli import app, groups
from cdrl.config import ClusterConfig
from cdrl.errors import ConfigError, TrackingError
from cdrl.evaluation.extractor import Coordinates
from cdrl.evaluation.generate import generate
from cdrl.evaluation.parts import Part
from cdrl.evaluation.protocol import ScoreCard
from cdrl.evaluation.reference import QuickScore, Reference
from cdrl.evaluation.run import evaluate_run
from cdrl.model import Model
from cdrl.runs import RunRecord, step_folder
from cdrl.session import connected
from tests.evaluation_parts import digits, tiny_config, tiny_run
from tests.training_parts import ATTEMPT

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    root = tmp_path_factory.mktemp("runs")
    return tiny_run(tiny_config(digits(root / "digits"), root))


def run_cli(*arguments: str) -> str:
    if not app.registered_groups:
        groups.attach(app)
    result = CliRunner().invoke(app, ["evaluate", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_prints_and_keeps_the_scores(record: RunRecord) -> None:
    output = run_cli(record.run_id, "--root", record.config.run.root, "--samples", "24", "--workers", "1")
    for part in ("FD (digits-cnn)", "K = 1", "K = 0, initializer", "real images", "±", "24 generated", "note: 24"):
        assert part in output
    folder = record.directory / "evaluation"
    card = ScoreCard.model_validate_json((folder / "latest.json").read_text())
    assert (card.run_id, card.which, card.protocol.num_generated) == (record.run_id, "best", 24)
    client = mlflow.MlflowClient(record.tracking_uri)
    metrics = client.get_run(record.mlflow_run_id).data.metrics
    assert metrics["score/frechet"] == pytest.approx(card.scores["frechet"])
    assert card.k0 is not None and metrics["score_k0/recall"] == pytest.approx(card.k0["recall"])
    assert metrics["floor/label_accuracy"] == pytest.approx(card.floor["label_accuracy"])
    kept = {file.path for file in client.list_artifacts(record.mlflow_run_id, "evaluation")}
    assert {f"evaluation/{name}" for name in ("latest.json", "samples.png", "nearest.png", "report.html")} <= kept
    assert metrics["score_error/frechet"] == pytest.approx(card.errors["frechet"])
    assert card.memorisation is not None and metrics["memorisation/nearer"] == card.memorisation.nearer
    assert not list(record.directory.rglob("*.part")), "a finished evaluation leaves no parts"


def test_another_protocol_leaves_another_card(record: RunRecord) -> None:
    before = set((record.directory / "evaluation").glob("score-*.json"))
    run_cli(str(record.directory), "--samples", "24", "--workers", "1", "--set", "sampling.denoise_scale=1.0")
    assert len(set((record.directory / "evaluation").glob("score-*.json")) - before) == 1


@pytest.mark.parametrize(
    "option, reason", [("--which=worst", "expected best or last"), ("--set=a.b=1", "unknown setting")]
)
def test_bad_options(option: str, reason: str, record: RunRecord) -> None:
    if not app.registered_groups:
        groups.attach(app)
    result = CliRunner().invoke(app, ["evaluate", record.run_id, "--root", record.config.run.root, option])
    assert isinstance(result.exception, ConfigError) and reason in str(result.exception)


def test_an_unreachable_server_is_told_before_the_work(record: RunRecord) -> None:
    elsewhere = record.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    before = sorted((record.directory / "evaluation").iterdir())
    with pytest.raises(TrackingError):
        evaluate_run(elsewhere)
    assert sorted((record.directory / "evaluation").iterdir()) == before


@pytest.fixture(scope="module")
def three_workers() -> Iterator[ClusterConfig]:
    cluster = ClusterConfig(num_workers=3)
    with connected(cluster):
        yield cluster


def test_a_session_listens_on_the_loopback_alone(three_workers: ClusterConfig) -> None:
    me = psutil.Process()
    own = {me.pid, *(child.pid for child in me.children(recursive=True))}
    heard = {each.laddr.ip for each in psutil.net_connections("tcp") if each.status == "LISTEN" and each.pid in own}
    assert {ip.removeprefix("::ffff:") for ip in heard} == {"127.0.0.1"}
    assert ray.util.get_node_ip_address() == "127.0.0.1"


def test_ray_workers_draw_what_one_process_draws(record: RunRecord, three_workers: ClusterConfig) -> None:
    labels, extractor = np.arange(40) % 10 + 1, Reference(record.config, "cpu").extractor
    folder = record.directory / step_folder(3, ATTEMPT)
    seen: list[int] = []

    def parts(cluster: ClusterConfig) -> list[Part]:
        given = {"sampling": record.config.sampling, "seed": 7, "cluster": cluster, "progress": seen.append}
        return generate(folder, 40, extractor, labels=labels, **given)

    alone, together = parts(ClusterConfig()), parts(three_workers)
    assert seen[:3] == [16, 16, 8] and sorted(seen[3:]) == [8, 16, 16]
    for one, three in zip(alone, together, strict=True):
        assert one.first == three.first and (one.images == three.images).all()
        np.testing.assert_allclose(one.features, three.features, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="64 workers need 64 CPUs, the Ray cluster has 3"):
        parts(ClusterConfig(num_workers=64))


def test_a_worker_that_dies_is_started_again_and_an_error_is_the_workers_own_line(
    record: RunRecord, three_workers: ClusterConfig, tmp_path: Path
) -> None:
    marker = tmp_path / "died"

    class Deadly(Coordinates):
        def features(self, images: np.ndarray) -> np.ndarray:
            if not marker.exists():
                marker.touch()
                os._exit(1)
            return images.reshape(len(images), -1).astype(np.float32)

    folder = record.directory / step_folder(3, ATTEMPT)
    given = {"sampling": record.config.sampling, "seed": 7, "cluster": three_workers}
    parts = generate(folder, 40, Deadly(), labels=np.ones(40, np.int64), **given)
    assert marker.exists() and [len(part.features) for part in parts] == [16, 16, 8]
    with pytest.raises(ConfigError, match="^labels: expected 0 ... 10, got 99 ... 99$"):
        generate(folder, 40, Deadly(), labels=np.full(40, 99), **given)


def test_the_same_scores_with_ray(record: RunRecord, three_workers: ClusterConfig) -> None:
    one = evaluate_run(record).card
    three = evaluate_run(record, config=record.config.model_copy(update={"cluster": three_workers})).card
    assert one.scores == pytest.approx(three.scores, rel=1e-9) and one.k0 == pytest.approx(three.k0, rel=1e-9)


def test_the_quick_score_travels_to_a_worker(record: RunRecord, three_workers: ClusterConfig) -> None:
    score, folder = QuickScore(record.config), record.directory / step_folder(3, ATTEMPT)

    @ray.remote(num_cpus=1)
    def elsewhere(call: QuickScore) -> tuple[float, float]:
        return call(Model.load(folder))

    assert ray.get(elsewhere.remote(score)) == pytest.approx(score(Model.load(folder)))


def test_the_folder_of_runs_may_lie_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such run"):
        run_cli("tiny", "--root", str(tmp_path))
