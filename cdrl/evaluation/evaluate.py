"""From a model's directory to its score card and pictures: at K, at K = 0, and what real images would get."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from cdrl.config import Config
from cdrl.evaluation import gallery
from cdrl.evaluation.protocol import ScoreCard
from cdrl.evaluation.scorer import Progress, Scorer
from cdrl.pictures import png_bytes
from cdrl.storage import write_bytes

__all__ = ["Evaluation", "Progress", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """A score card and the pictures that go with it, by name."""

    card: ScoreCard
    pictures: dict[str, Image.Image]

    def write(self, folder: Path) -> None:
        """`<name>.png`, `score-<protocol>-<model>.json` and, last, the same card as `latest.json`."""
        for name, picture in self.pictures.items():
            write_bytes(str(folder / f"{name}.png"), png_bytes(picture))
        content = self.card.model_dump_json(indent=1).encode()
        name = f"score-{self.card.protocol.digest[:8]}-{self.card.model_digest[:8]}.json"
        write_bytes(str(folder / name), content)
        write_bytes(str(folder / "latest.json"), content)


def evaluate(
    ref: str | Path,
    config: Config,
    *,
    run_id: str = "",
    which: Literal["best", "last", ""] = "",
    progress: Progress | None = None,
) -> Evaluation:
    """Score a model by `config.evaluation` and `config.sampling` on the data of `config.data`.

    Args:
        ref: the model's directory or URI.
        config: the model's own, with changes below data.uri, data.cache, sampling, evaluation, cluster and run.
        run_id, which: where the model came from, for the card.

    Raises:
        ConfigError: settings that do not go with the model, the data or the cluster, or draw what is not finite.
        DataError, StorageError, RegistryError: data, weights or model are missing, damaged or out of reach.
    """
    scorer = Scorer(ref, config, progress)
    alone, k0 = None, None
    with scorer.session():  # one for both sets
        main = scorer.draw(config.sampling)
        shown = {f"K = {config.sampling.steps_text}": main.images}
        if config.initializer is not None:
            alone = config.sampling.model_copy(update={"num_steps": 0, "denoise_scale": 0.0})
            initial = scorer.draw(alone)
            shown["K = 0: initializer alone"], k0 = initial.images, initial.scores
    card = ScoreCard(
        protocol=scorer.protocol(config.sampling),
        scores=main.scores,
        k0=k0,
        k0_sampling=alone,
        **scorer.provenance,
        run_id=run_id,
        which=which,
        seconds=round(main.seconds, 3),
        images_per_s=round(len(main.images) / main.seconds, 2),
    )
    return Evaluation(card, gallery.pictures(shown, scorer.labels, scorer.reference.train))
