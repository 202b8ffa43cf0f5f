"""`cdrl registry ...`: look at models, versions, proofs and the history of champions."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cdrl.cli import promotion
from cdrl.cli.places import NameArgument, RootOption, TrackingOption, registry_of

if TYPE_CHECKING:
    from cdrl.evaluation.protocol import Scores
    from cdrl.registry.versions import Version

__all__ = ["RootOption", "TrackingOption", "app"]

app = typer.Typer(help="Turn runs into model versions and choose the champion.", no_args_is_help=True)

app.command()(promotion.register)
app.command()(promotion.replace)
app.command()(promotion.gate)
app.command()(promotion.promote)
app.command()(promotion.rollback)


@app.command("list")
def list_models(root: RootOption = "runs", tracking: TrackingOption = None) -> None:
    """List the registered models and their champions."""
    from cdrl.registry.versions import CHAMPION

    registry = registry_of(tracking, root)
    table = Table("model", "versions", "champion", box=None)
    for name in registry.names():
        versions = registry.versions(name)
        champion = next((str(version.number) for version in versions if CHAMPION in version.aliases), "-")
        table.add_row(name, str(len(versions)), champion)
    Console().print(table)


@app.command()
def show(name: NameArgument, root: RootOption = "runs", tracking: TrackingOption = None) -> None:
    """List the versions of a model: scores (lower is better), how they were measured, what the gate said."""
    registry = registry_of(tracking, root)
    registry.find(f"{name}/latest")  # says which models there are if this one is none
    versions, console = registry.versions(name), Console(highlight=False)
    console.print(_table(versions))
    console.print(*map(escape, _notes(versions)), sep="\n", soft_wrap=True)


@app.command()
def history(name: NameArgument, root: RootOption = "runs", tracking: TrackingOption = None) -> None:
    """List every move of a model's champion: who, when, why and which files; each link of the chain is checked."""
    kept = registry_of(tracking, root).history(name)
    chain = kept.read()
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("no", "what", "champion", "before", "when (UTC)", "who", "proof"):
        table.add_column(title, overflow="fold")
    for entry in chain.entries:
        numbers = [str(version or "-") for version in (entry.champion, entry.before)]
        when, proof = f"{entry.when:%Y-%m-%d %H:%M:%S}", entry.proof_digest[:12] or "-"
        table.add_row(str(entry.number), entry.action, *numbers, when, entry.who, proof)
    console = Console(highlight=False)
    console.print(table)
    for entry in chain.entries:
        console.print(escape(f"{entry.number}: {'; '.join(entry.why)}"), soft_wrap=True)
    console.print(escape(f"{len(chain.entries)} entries, chain whole: {kept.uri}"), soft_wrap=True)


@app.command()
def verify(
    ref: Annotated[str, typer.Argument(metavar="REF", help="NAME/3, NAME@champion, or a package: a folder or s3://.")],
    root: RootOption = "runs",
    tracking: TrackingOption = None,
) -> None:
    """Recompute every digest of a version or a package; of a folder without any server."""
    from cdrl.registry.load import verified

    with verified(ref, root=root, tracking=tracking) as (folder, proof):
        table = Table.grid(padding=(0, 2))
        made = proof.made_from or f"run {proof.run_id} ({proof.which})"
        for name, value in (
            ("model", f"{proof.model_digest[:12]}, {proof.step} updates, from {made}"),
            ("configuration", proof.config_digest[:12]),
            ("data manifest", proof.manifest_digest[:12]),
            ("score card", proof.files.get("scorecard.json", "none")[:12]),
            ("code", f"{proof.code_digest[:12]}, cdrl {proof.cdrl_version}"),
            ("files", f"{len(proof.files)} of the package, {len(proof.wrapper)} around it"),
        ):
            table.add_row(name, escape(value))
        console = Console(highlight=False)
        console.print(escape(f"{ref}: every file is what the proof says"), soft_wrap=True)
        console.print(table)


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
            escape(version.run_id or version.made_from),
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
