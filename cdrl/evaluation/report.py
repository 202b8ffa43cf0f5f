"""An evaluation as one HTML file: scores with their protocol, and every picture embedded; it loads nothing."""

import base64
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from PIL import Image

from cdrl import __version__
from cdrl.evaluation.protocol import ScoreCard, figure, leaves
from cdrl.pictures import png_bytes

__all__ = ["report"]

CAPTIONS = {
    "samples": ("Samples", "Drawn as the protocol says; of a conditional model a row for each class."),
    "grid": ("Samples as they come", "The first of the set, in the proportions of the reference."),
    "comparison": ("K, K = 0 and real", "With the chains, by the initializer alone, and images of the train split."),
    "path": ("Sampling path", "A row for each image, from noise to data; a level each column."),
    "nearest": ("Nearest training images", "The samples that lie nearest to a training image, above that image."),
    "energies": (
        "Energies per level",
        "Energy -f/step_size of real and generated images, noised to each level, in standard deviations of the real "
        "ones from their mean: a level at which they differ tells one from the other.",
    ),
    "schedule": ("Schedule", "What the levels are, and what happens at each."),
    "learning": ("Learning curves", "As the run's journal tells them; a line for each pair."),
}


def report(card: ScoreCard, pictures: dict[str, Image.Image]) -> str:
    """The HTML of a score card and its pictures; the known ones in a fixed order, others below their names."""
    protocol = card.protocol
    order = [name for name in CAPTIONS if name in pictures] + [name for name in pictures if name not in CAPTIONS]
    figures = [
        {
            "title": CAPTIONS.get(name, (name, ""))[0],
            "caption": CAPTIONS.get(name, (name, ""))[1],
            "png": base64.b64encode(png_bytes(pictures[name])).decode(),
        }
        for name in order
    ]
    head, *rows = card.table
    origin = card.model_dump(
        include={"run_id", "which", "step", "model_digest", "config_digest", "seconds", "images_per_s", "floor_of"}
    )
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(
        Path(__file__).with_name("report.html").read_text()
    )
    return page.render(
        title=f"Evaluation of {card.run_id or 'model ' + card.model_digest[:12]}, update {card.step}",
        headline=(
            protocol.metric,
            figure(card.scores["frechet"], card.errors.get("frechet")),
            f"real images get {figure(card.floor['frechet'], card.floor_errors.get('frechet'))}; lower is better",
        ),
        notes=card.notes,
        columns=head,
        rows=rows,
        errors=f"± one standard error over images, not over seeds of training; {card.num_resamples} resamples.",
        memorisation=card.memorisation and card.memorisation.describe(),
        figures=figures,
        protocol=[("protocol", protocol.digest), *leaves(protocol.model_dump(mode="json"))],
        origin=[*origin.items(), ("created", f"{card.created:%Y-%m-%d %H:%M} UTC")],
        version=__version__,
    )
