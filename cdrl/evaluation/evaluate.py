"""From a model's directory to its score card and pictures: at K, at K = 0, and what real images would get."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from cdrl.config import Config
from cdrl.evaluation import diagnosis, gallery
from cdrl.evaluation.bootstrap import num_resamples_for
from cdrl.evaluation.insight import insight
from cdrl.evaluation.memorisation import memorised
from cdrl.evaluation.parts import Shelf
from cdrl.evaluation.protocol import ScoreCard
from cdrl.evaluation.report import report
from cdrl.evaluation.scorer import Progress, Scorer
from cdrl.pictures import png_bytes
from cdrl.storage import write_bytes

__all__ = ["Evaluation", "Progress", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """A score card and the pictures that go with it, by name; and the images behind them, as far as they were kept."""

    card: ScoreCard
    pictures: dict[str, Image.Image]
    shelves: tuple[Shelf, ...] = ()

    def write(self, folder: Path) -> None:
        """`<name>.png`, `report.html`, `score-<protocol>-<model>.json` and, last, the same card as `latest.json`.

        The parts that the images were kept in are removed then: the evaluation is complete.
        """
        for name, picture in self.pictures.items():
            write_bytes(str(folder / f"{name}.png"), png_bytes(picture))
        write_bytes(str(folder / "report.html"), report(self.card, self.pictures).encode())
        content = self.card.model_dump_json(indent=1).encode()
        name = f"score-{self.card.protocol.digest[:8]}-{self.card.model_digest[:8]}.json"
        write_bytes(str(folder / name), content)
        write_bytes(str(folder / "latest.json"), content)
        for shelf in self.shelves:
            shelf.clear()


def evaluate(
    ref: str | Path,
    config: Config,
    *,
    run_id: str = "",
    which: Literal["best", "last", ""] = "",
    parts: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score a model by `config.evaluation` and `config.sampling` on the data of `config.data`.

    Args:
        ref: the model's directory or URI.
        config: the model's own, with changes below data.uri, data.cache, sampling, evaluation, cluster and run.
        run_id, which: where the model came from, for the card.
        parts: a folder (path or URI) that keeps finished parts of the drawn sets, so that an evaluation that was killed
            goes on; `Evaluation.write` empties it.

    Raises:
        ConfigError: settings that do not go with the model, the data or the cluster, or draw what is not finite.
        DataError, StorageError, RegistryError: data, weights or model are missing, damaged or out of reach.
    """
    scorer = Scorer(ref, config, parts=parts, progress=progress)
    initial, alone = None, None
    with scorer.session():  # one for both sets
        main = scorer.draw(config.sampling)
        if config.initializer is not None:
            alone = config.sampling.model_copy(update={"num_steps": 0, "denoise_scale": 0.0})
            initial = scorer.draw(alone)
    protocol, reference = scorer.protocol(config.sampling), scorer.reference
    shown = {f"K = {config.sampling.steps_text}": main.images}
    if initial is not None:
        shown["K = 0: initializer alone"] = initial.images
    remembered = memorised(reference, main.images, main.measured, seed=config.evaluation.seed)
    card = ScoreCard(
        protocol=protocol,
        scores=main.scored.scores,
        errors=main.scored.errors,
        k0=None if initial is None else initial.scored.scores,
        k0_errors={} if initial is None else initial.scored.errors,
        k0_sampling=alone,
        num_resamples=num_resamples_for(main.measured.rows.shape[1]),
        notes=diagnosis.notes(main.images, main.measured, reference.measured, protocol),
        memorisation=None if remembered is None else remembered.card,
        **scorer.provenance,
        run_id=run_id,
        which=which,
        seconds=round(main.seconds, 3),
        images_per_s=main.images_per_s,
    )
    pictures = gallery.pictures(shown, scorer.labels, reference.train)
    if remembered is not None and remembered.nearest is not None:
        pictures["nearest"] = gallery.neighbours(*remembered.nearest)
    if scorer.labels is not None and main.images.ndim == 4:
        pictures["grid"] = gallery.sheet(main.images)
    unseen = reference.holdout or reference.train
    pictures |= insight(scorer.model, config, main.images, scorer.labels, unseen)
    used = [shelf for sampling in (config.sampling, alone) if sampling and (shelf := scorer.shelf(sampling))]
    return Evaluation(card, pictures, tuple(used))
