"""Where runs and versions are: options and arguments that many commands share."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cdrl.registry.versions import Registry

__all__ = ["NameArgument", "ReasonOption", "RootOption", "TrackingOption", "VersionArgument", "registry_of"]

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The model: the `name` of its configuration.")]
VersionArgument = Annotated[
    str, typer.Argument(metavar="VERSION", help="A number, `latest`, or the run that made it.")
]
ReasonOption = Annotated[str, typer.Option("--why", metavar="TEXT", help="What you have to say; kept in the history.")]
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


def registry_of(tracking: str | None, root: str) -> "Registry":
    """The registry that the two options mean."""
    from cdrl.registry.load import registry_at

    return registry_at(tracking, root)
