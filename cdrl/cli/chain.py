"""`cdrl chain REF`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from cdrl.cli.registry import RootOption, TrackingOption

if TYPE_CHECKING:
    from cdrl.evaluation.long_chains import ChainCard, Kind

__all__ = ["chain", "levels_of"]


def chain(
    ref: Annotated[
        str, typer.Argument(metavar="REF", help="A run, a checkpoint (path or URI), or models:/NAME@champion.")
    ],
    level: Annotated[str, typer.Option(metavar="all|S,S,...", help="Noise levels, 0 = almost clean.")] = "all",
    kind: Annotated[
        str, typer.Option(metavar="both|conditional|marginal", help="With the pull towards a fixed x_t, or without.")
    ] = "both",
    steps: Annotated[int, typer.Option(min=1, help="Langevin steps.")] = 100_000,
    chains: Annotated[int, typer.Option(min=1, help="Chains of each kind at each level.")] = 4,
    mala: Annotated[bool, typer.Option("--mala", help="Metropolis-adjusted steps: no bias of the step size.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other chains.")] = 0,
    data: Annotated[str | None, typer.Option(metavar="URI", help="The run's dataset, where it moved.")] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Where; default: REF-chain.png. A .json goes beside it.")
    ] = None,
    root: RootOption = "runs",
    tracking: TrackingOption = None,
) -> None:
    """Run long chains at the step size of training: do they stay realistic, and how far are they from balance?"""
    from cdrl import storage
    from cdrl.cli.evaluate import showing_progress
    from cdrl.cli.sample import load_model
    from cdrl.errors import ConfigError
    from cdrl.evaluation.chain_plot import chain_plot
    from cdrl.evaluation.long_chains import run_chains
    from cdrl.pictures import png_bytes

    kinds: dict[str, list[Kind]] = {
        "both": ["conditional", "marginal"],
        "conditional": ["conditional"],
        "marginal": ["marginal"],
    }
    if kind not in kinds:
        raise ConfigError(f"--kind: expected both, conditional or marginal, got {kind!r}")
    levels = levels_of(level)
    target = picture or Path(f"{ref.strip('/').rpartition('/')[2].partition('@')[0]}-chain.png")
    model = load_model(ref, root, tracking)
    with showing_progress() as progress:
        result = run_chains(
            model,
            levels=levels,
            kinds=kinds[kind],
            num_steps=steps,
            num_chains=chains,
            adjusted=mala,
            uri=data,
            seed=seed,
            progress=progress,
        )
    place = target.with_suffix(".json")
    storage.write_bytes(str(place), result.card.model_dump_json(indent=1).encode())
    storage.write_bytes(str(target), png_bytes(chain_plot(result)))
    console = Console()
    console.print(_table(result.card))
    console.print(f"long chains: {target}, {place}", highlight=False, soft_wrap=True)


def levels_of(text: str) -> list[int] | None:
    """The levels of "0,2,5"; None for "all".

    Raises:
        ConfigError: something else than whole numbers.
    """
    from cdrl.errors import ConfigError

    if text == "all":
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--level: expected all or levels such as 0,2, got {text!r}") from None


def _table(card: "ChainCard") -> Table:
    """Acceptance per level, with the change of the log-density."""
    steps = f"{card.num_steps:,} {'MALA' if card.adjusted else 'Langevin'} steps of {card.num_chains} chains each"
    title = f"Metropolis acceptance at the step size of training, and log p gained:\n{steps}"
    table = Table(title=title, box=None, title_justify="left")
    titles = ("", "level", "logSNR", "step size", f"first {card.num_short}", "all", "last tenth", "log p, nats")
    for title in titles:
        table.add_column(title, justify="right" if title else "left")
    for row in card.rows:
        short = "-" if row.acceptance_short is None else f"{row.acceptance_short:.3f}"
        shares = [short, f"{row.acceptance:.3f}", f"{row.acceptance_last:.3f}"]
        figures = [f"{row.logsnr:.2f}", f"{row.step_size:.3g}", *shares, f"{row.change_nats:+.1f}"]
        table.add_row(row.kind, str(row.level), *figures)
    return table
