"""`cdrl submit -- COMMAND`: the same command here, on a Ray cluster, or on a cluster made for it."""

import os
import sys
from typing import Annotated

import typer

from cdrl.cli.jobs import AddressOption, report_to_the_end
from cdrl.cli.places import RootOption

__all__ = ["submit"]


def submit(
    command: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND...", help="A command line of cdrl, without `cdrl`.")
    ],
    address: AddressOption = "local",
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the job; default: the command's words and a number.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Show the log until the end; exit code 2 for a mistake of yours.")
    ] = False,
    source: Annotated[
        str | None, typer.Option("--config", metavar="FILE", help="kuberay: image, workers, queue, ... as YAML.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be run or sent.")] = False,
    root: RootOption = "runs",
) -> None:
    """Run a command of cdrl where you say; it is checked before anything is sent."""
    import shlex

    from cdrl.cli.commands import checked, on_cluster

    config = checked(command)
    if address == "local":
        if dry_run:
            typer.echo(shlex.join(["cdrl", *command]))
            return
        _become(command)
    from cdrl.cluster.fit import check_fit
    from cdrl.cluster.jobs import default_name
    from cdrl.cluster.manifest import render, to_yaml
    from cdrl.cluster.places import place_at
    from cdrl.cluster.spec import check_name, read_spec

    spec = read_spec(source)
    name = check_name(name or default_name(command))
    line = on_cluster(command)
    if address == "kuberay" and config:
        check_fit(config, spec)
    if dry_run:
        typer.echo(to_yaml(render(name, line, spec)) if address == "kuberay" else shlex.join(["cdrl", *line]), nl=False)
        return
    place = place_at(address, spec, root)
    job = place.submit(name, line)
    typer.echo(f"submitted: job {job}")
    if wait:
        report_to_the_end(place, job)
    else:
        typer.echo(f"next: cdrl jobs logs {job} --follow --address {address}")


def _become(command: list[str]) -> None:
    """Run the command in this process's place: its output, exit code and signals are this one's."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "cdrl.cli", *command])
