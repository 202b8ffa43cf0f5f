"""`cdrl registry register|promote|show|list`."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from cdrl.runs import RunRecord, Which

if TYPE_CHECKING:
    from cdrl.evaluation.protocol import ScoreCard, Scores
    from cdrl.registry.versions import Registry, Version

__all__ = ["RootOption", "TrackingOption", "app"]

app = typer.Typer(help="Turn runs into model versions and choose the champion.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The model: the `name` of its configuration.")]
RootOption = Annotated[str, typer.Option("--root", metavar="FOLDER", help="The folder of runs.")]
TrackingOption = Annotated[
    str | None,
    typer.Option(
        "--tracking",
        metavar="URI",
        envvar="MLFLOW_TRACKING_URI",
        help="The MLflow server; default: the database below --root.",
    ),
]


@app.command()
def register(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, a unique beginning of it, or its folder.")],
    which: Annotated[Which, typer.Option(help="The checkpoint with the best quick score, or the newest.")] = "best",
    root: RootOption = "runs",
    tracking: TrackingOption = None,
) -> None:
    """Make a version of a run's checkpoint; the same weights and scores are registered once."""
    from cdrl.registry.versions import Registry

    registry = Registry(tracking or RunRecord.read(run, root).tracking_uri)
    version = registry.register(run, which=which, root=root)
    card = version.scorecard
    scored = "no score card; run `cdrl evaluate`, then register again" if card is None else _scored(card)
    Console(soft_wrap=True).print(f"{version.name} version {version.number}: {scored}", highlight=False)


@app.command()
def promote(
    name: NameArgument,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="A number, `latest`, or the run that made it.")],
    root: RootOption = "runs",
    tracking: TrackingOption = None,
) -> None:
    """Make a version the champion if its score is no worse than the champion's under the same protocol."""
    from cdrl.registry.promote import promote as move

    promoted, decision = move(_registry(tracking, root), name, version)
    text = f"{name} version {promoted.number} is champion: {'; '.join(decision.reasons)}"
    Console(soft_wrap=True).print(text, highlight=False)


@app.command()
def show(name: NameArgument, root: RootOption = "runs", tracking: TrackingOption = None) -> None:
    """List the versions of a model: scores (lower is better), how they were measured, what the gate said."""
    registry = _registry(tracking, root)
    registry.find(f"{name}/latest")  # says which models there are if this one is none
    versions, console = registry.versions(name), Console(highlight=False)
    console.print(_table(versions))
    console.print(*_notes(versions), sep="\n", soft_wrap=True)


@app.command("list")
def list_models(root: RootOption = "runs", tracking: TrackingOption = None) -> None:
    """List the registered models and their champions."""
    from cdrl.registry.versions import CHAMPION

    registry = _registry(tracking, root)
    table = Table("model", "versions", "champion", box=None)
    for name in registry.names():
        versions = registry.versions(name)
        champion = next((str(version.number) for version in versions if CHAMPION in version.aliases), "-")
        table.add_row(name, str(len(versions)), champion)
    Console().print(table)


def _scored(card: "ScoreCard") -> str:
    return f"{card.protocol.metric} {_figure(card.scores)}"


def _registry(tracking: str | None, root: str) -> "Registry":
    from cdrl.registry.versions import Registry
    from cdrl.tracking.server import default_uri

    return Registry(tracking or default_uri(root))


def _table(versions: "list[Version]") -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("version", "alias", "score", "K = 0", "floor", "protocol", "run", "created", "gate"):
        table.add_column(title, overflow="fold")
    for version in versions:
        card = version.scorecard
        measured = card and (_figure(card.scores), _figure(card.k0), _figure(card.floor), card.protocol.digest[:8])
        table.add_row(
            str(version.number),
            ", ".join(version.aliases) or "-",
            *(measured or "----"),
            version.run_id,
            f"{version.created:%Y-%m-%d}",
            version.gate.partition(":")[0] or "-",
        )
    return table


def _notes(versions: "list[Version]") -> list[str]:
    """What the table has no room for: each protocol in full, then what the gate said of each version."""
    protocols = dict.fromkeys(version.scorecard.protocol.describe() for version in versions if version.scorecard)
    return [*protocols, *(f"version {version.number} {version.gate}" for version in versions if version.gate)]


def _figure(scores: "Scores | None") -> str:
    value = None if scores is None else scores["frechet"]
    return "-" if value is None else f"{value:.4f}"
