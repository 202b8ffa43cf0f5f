"""`cdrl likelihood REF`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from cdrl.cli.registry import RootOption, TrackingOption

if TYPE_CHECKING:
    from cdrl.evaluation.likelihood import LikelihoodCard

__all__ = ["likelihood"]

FEW_VALUES = 128  # data with fewer grey values than this are no 8-bit photographs


def likelihood(
    ref: Annotated[
        str, typer.Argument(metavar="REF", help="A run, a checkpoint (path or URI), or models:/NAME@champion.")
    ],
    level: Annotated[int, typer.Option(min=0, help="Noise level, 0 = almost clean.")] = 0,
    label: Annotated[
        str | None, typer.Option(help="Class name: its density and data; default: no label, all data.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Held-out images to score, at most.")] = 500,
    chains: Annotated[int, typer.Option(min=2, help="Annealing chains, all in one batch.")] = 128,
    temperatures: Annotated[int, typer.Option(min=2, help="Steps of the annealing.")] = 1000,
    leapfrog: Annotated[int, typer.Option(min=1, help="HMC's evaluations per temperature; 1 = MALA.")] = 1,
    relax: Annotated[int, typer.Option(min=0, help="HMC steps from data before the backward run.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other chains.")] = 0,
    data: Annotated[str | None, typer.Option(metavar="URI", help="The run's dataset, where it moved.")] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Where; default: REF-likelihood.png. A .json goes beside it.")
    ] = None,
    root: RootOption = "runs",
    tracking: TrackingOption = None,
) -> None:
    """Normalize one level's density by annealed importance sampling and score held-out data."""
    from cdrl import storage
    from cdrl.cli.evaluate import showing_progress
    from cdrl.cli.sample import load_model
    from cdrl.evaluation.likelihood import evaluate_likelihood
    from cdrl.evaluation.likelihood_plot import likelihood_plot
    from cdrl.pictures import png_bytes

    target = picture or Path(f"{ref.strip('/').rpartition('/')[2].partition('@')[0]}-likelihood.png")
    model = load_model(ref, root, tracking)
    with showing_progress() as progress:
        result = evaluate_likelihood(
            model,
            level=level,
            label=label,
            uri=data,
            num_images=images,
            num_chains=chains,
            num_temperatures=temperatures,
            num_leapfrog=leapfrog,
            num_relaxing=relax,
            seed=seed,
            progress=progress,
        )
    place = target.with_suffix(".json")
    storage.write_bytes(str(place), result.card.model_dump_json(indent=1).encode())
    storage.write_bytes(str(target), png_bytes(likelihood_plot(result)))
    console = Console()
    console.print(_table(result.card))
    for note in _notes(result.card):
        console.print(f"- {note}", highlight=False, soft_wrap=True)
    console.print(f"annealing: {target}, {place}", highlight=False, soft_wrap=True)


def _table(card: "LikelihoodCard") -> Table:
    title = f"level {card.level}, {card.label or 'no label'}: {card.num_images} images of the split {card.split!r}"
    table = Table(title=title, box=None, title_justify="left")
    for heading in ("", "log Z, nats", "+-", "effective chains", "-ln p(x_s), nats", "bits/dim"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, one in (("forward", card.forward), ("backward", card.backward)):
        error = "inf" if one.standard_error_nats is None else f"{one.standard_error_nats:.2f}"
        bits = "-" if one.bits_per_dim is None else f"{one.bits_per_dim:.3f}"
        chains = f"{one.effective_chains:.1f} of {card.num_chains}"
        table.add_row(name, f"{one.log_z_nats:,.2f}", error, chains, f"{one.nll_nats:,.2f}", bits)
    return table


def _notes(card: "LikelihoodCard") -> list[str]:
    """What the figures are, and what they are not."""
    notes = [
        f"p is the density of slightly noisy data x_s, s = {card.level}: no likelihood of clean data, and not "
        "comparable with one without a variational bridge",
        "forward: log Z from below in expectation, so the likelihood is optimistic; backward: from above only if it "
        f"had started from exact draws of the model. It started from held-out data after {card.num_relaxing} HMC "
        "steps: an estimate, blind to what the model holds far from data",
    ]
    if card.noise_bits_per_dim is not None:
        notes.append(f"bits/dim cannot fall below {card.noise_bits_per_dim:.3f}, the entropy of the noise of x_s alone")
    if card.num_values is not None and card.num_values < FEW_VALUES:
        notes.append(
            f"these images have {card.num_values} distinct pixel values; the bits are per pixel of 256 values, "
            "dequantised over one of them"
        )
    slack = 3 * sum(one.standard_error_nats or 0.0 for one in (card.forward, card.backward))
    if card.forward.log_z_nats > card.backward.log_z_nats + slack:
        notes.append("forward lies above backward: most of the model's mass is where neither data nor their chains are")
    elif min(card.forward.effective_chains, card.backward.effective_chains) < 4:
        notes.append("a few chains outweigh the others: take more --temperatures or --chains before trusting this")
    return notes
