"""Make versions: of a run's checkpoint, with the score card that was measured on it."""

from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow.entities import LoggedModelOutput

from cdrl.errors import RegistryError
from cdrl.evaluation.protocol import Protocol, ScoreCard, Scores
from cdrl.model import Model
from cdrl.registry import package
from cdrl.registry.version import Version, tags
from cdrl.registry.versions import Registry
from cdrl.runs import RunRecord, Which, fetch_model

__all__ = ["publish", "register"]


def register(registry: Registry, run: str, *, which: Which = "best", root: str = "runs") -> Version:
    """Make a version of a run's checkpoint, with the score card that was measured on it.

    The same weights with the same scores under the same protocol are registered once: that version is returned
    again. A version appears when all its files are in place.

    Args:
        run: a run id, a unique prefix of one, or a run directory. The registry's server must have tracked it.

    Raises:
        ConfigError: no such run, or no checkpoint yet.
        RegistryError: the checkpoint is no model, or the server does not know the run or refuses the model.
    """
    record = RunRecord.read(run, root)
    if not record.mlflow_run_id:
        raise RegistryError(
            f"run {record.run_id}: no tracking server has heard of it yet; `cdrl track sync {record.run_id}` tells it"
        )
    source = fetch_model(str(record.directory), which)
    model = Model.load(source)
    card = package.scorecard(record.directory, model)
    return publish(registry, source, model, card, record.mlflow_run_id, run_id=record.run_id, which=which)


def publish(
    registry: Registry,
    source: Path,
    model: Model,
    card: ScoreCard | None,
    mlflow_run_id: str,
    *,
    run_id: str = "",
    which: str = "",
    made_from: str = "",
) -> Version:
    """Make a version of the model in the folder `source`, unless there is one of the same weights and scores.

    Args:
        card: measured on these weights.
        mlflow_run_id: the tracked run that the version hangs on.
        run_id, which, made_from: as in `Proof`.

    Raises:
        RegistryError: the server does not know the run or refuses the model.
    """
    name = model.config.name
    for version in registry.versions(name):
        is_same = version.model_digest == model.digest and _figures(version.scorecard) == _figures(card)
        if is_same and version.proof_digest:
            return version
    client = registry.client
    with TemporaryDirectory() as scratch, registry.translated():
        run = client.get_run(mlflow_run_id).info
        files = Path(scratch, "model")
        proof_digest = package.save(source, model, card, files, run_id=run_id, which=which, made_from=made_from)
        told = {**tags(model, card, run_id=run_id, made_from=made_from), "cdrl.proof_digest": proof_digest}
        logged = client.create_logged_model(run.experiment_id, name, run.run_id, told)
        client.log_model_artifacts(logged.model_id, str(files))
        client.finalize_logged_model(logged.model_id, "READY")
        client.log_outputs(run.run_id, [LoggedModelOutput(logged.model_id, model.step)])
        registry.ensure_history(name, model.config)
        made = client.create_model_version(
            name, logged.artifact_location, run.run_id, told, model_id=logged.model_id
        )
    return registry.find(f"{name}/{made.version}")


def _figures(card: ScoreCard | None) -> tuple[Protocol, Scores, Scores | None] | None:
    """A card without its time: what two measurements of the same thing share."""
    return None if card is None else (card.protocol, card.scores, card.k0)
