"""`cdrl doctor`: is this environment fit for a run?"""

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from cdrl import config as configuration
from cdrl.cli.config import SetOption

__all__ = ["doctor"]

COLOURS = {"OK": "green", "warn": "yellow", "fail": "red"}


def doctor(
    source: Annotated[
        str | None, typer.Argument(metavar="[CONFIG]", help="A preset or YAML file, whose places are tried.")
    ] = None,
    overrides: SetOption = None,
    address: Annotated[
        str | None, typer.Option(envvar="CDRL_ADDRESS", metavar="WHERE", help="http://HOST:8265 or kuberay.")
    ] = None,
) -> None:
    """Check versions, GPU, disk, S3, MLflow, Ray and Kubernetes. Exit code 1: something that you asked for fails."""
    from cdrl.cluster.doctor import examine
    from cdrl.errors import ConfigError

    if overrides and source is None:
        raise ConfigError("--set changes a configuration: name one, such as `cdrl doctor digits --set ...`")
    config = configuration.load(source, overrides or ()) if source else None
    console, failed = Console(soft_wrap=True, highlight=False), False
    for finding in examine(config, address):
        failed |= finding.state == "fail"
        advice = f" -> {finding.advice}" if finding.advice and finding.state != "OK" else ""
        state = f"[{COLOURS[finding.state]}]{finding.state:4}[/]"
        console.print(f"{state} {escape(finding.what)}: {escape(finding.seen + advice)}")
    raise typer.Exit(int(failed))
