"""What changes the registry: register, replace a level, promote, roll back."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cdrl.cli.config import SetOption
from cdrl.cli.places import NameArgument, ReasonOption, RootOption, TrackingOption, VersionArgument, registry_of
from cdrl.runs import RunRecord, Which

if TYPE_CHECKING:
    from cdrl.evaluation.protocol import ScoreCard

__all__ = ["gate", "promote", "register", "replace", "rollback"]


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
    _say(f"{version}: {_scored(version.scorecard)}")


def replace(
    base: Annotated[str, typer.Argument(metavar="NAME/3", help="The version that all other levels come from.")],
    levels: Annotated[str, typer.Option("--levels", metavar="L,...", help="All levels of each pair to replace.")],
    source: Annotated[
        str, typer.Option("--from", metavar="REF", help="Where they come from: a run, a checkpoint, models:/NAME/4.")
    ],
    overrides: SetOption = None,
    root: RootOption = "runs",
    tracking: TrackingOption = None,
) -> None:
    """Make and score a version with some levels of another run; `promote` then asks the gates."""
    from cdrl.cli.evaluate import showing_progress
    from cdrl.errors import ConfigError
    from cdrl.registry.replace import replace as put

    try:
        numbers = [int(level) for level in levels.split(",")]
    except ValueError:
        raise ConfigError(f"--levels {levels!r}: expected numbers such as 3 or 0,1") from None
    registry = registry_of(tracking, root)
    with showing_progress() as progress:
        version = put(registry, base, numbers, source, root=root, overrides=overrides or (), progress=progress)
    _say(f"{version}, {version.made_from}: {_scored(version.scorecard)}")
    _say(f"next: cdrl registry promote {version.name} {version.number}")


def gate(
    name: NameArgument,
    version: VersionArgument,
    overrides: SetOption = None,
    decision: Annotated[
        str | None, typer.Option("--decision", metavar="FILE", help="Write there: passed or refused.")
    ] = None,
    root: RootOption = "runs",
    tracking: TrackingOption = None,
) -> None:
    """Ask the gates what `promote` would ask them, and leave the champion where it is; both answers exit with 0."""
    from cdrl import storage
    from cdrl.cli.evaluate import showing_progress
    from cdrl.registry.promote import ask

    with showing_progress() as progress:
        candidate, found = ask(
            registry_of(tracking, root), name, version, overrides=overrides or (), progress=progress
        )
    answer = "passed" if found.passed else "refused"
    _say(f"{candidate} {answer}: {'; '.join(found.reasons)}")
    if decision is not None:
        storage.write_bytes(decision, answer.encode())


def promote(
    name: NameArgument,
    version: VersionArgument,
    overrides: SetOption = None,
    expected: Annotated[
        int | None, typer.Option("--expect", min=0, metavar="N", help="Only if version N is champion now; 0 = none.")
    ] = None,
    why: ReasonOption = "",
    root: RootOption = "runs",
    tracking: TrackingOption = None,
) -> None:
    """Make a version the champion if the gates of its configuration (gates.*) let it pass; a refusal says why."""
    from cdrl.cli.evaluate import showing_progress
    from cdrl.registry.promote import promote as move

    registry = registry_of(tracking, root)
    with showing_progress() as progress:
        promoted, decision = move(
            registry, name, version, overrides=overrides or (), expected=expected, reason=why, progress=progress
        )
    _say(f"{promoted} is champion: {'; '.join(decision.reasons)}")


def rollback(
    name: NameArgument,
    why: ReasonOption = "",
    root: RootOption = "runs",
    tracking: TrackingOption = None,
) -> None:
    """Make the champion before this one champion again; once more goes one further back."""
    from cdrl.registry.promote import rollback as back

    _say(f"{back(registry_of(tracking, root), name, reason=why)} is champion again")


def _scored(card: "ScoreCard | None") -> str:
    if card is None:
        return "no score card; run `cdrl evaluate`, then register again"
    value = card.scores["frechet"]
    return f"{card.protocol.metric} {'-' if value is None else f'{value:.4f}'}"


def _say(text: str) -> None:
    Console(soft_wrap=True).print(text, highlight=False, markup=False)
