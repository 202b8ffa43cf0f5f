"""`cdrl jobs list|status|logs|resume|stop`: what `cdrl submit` has begun."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cdrl.cli.places import RootOption

if TYPE_CHECKING:
    from cdrl.cluster.jobs import Place

__all__ = ["AddressOption", "app", "report_to_the_end"]

app = typer.Typer(help="Look after jobs on a cluster.", no_args_is_help=True)

AddressOption = Annotated[
    str, typer.Option(envvar="CDRL_ADDRESS", metavar="WHERE", help="local, http://HOST:8265 or kuberay.")
]
NamespaceOption = Annotated[str, typer.Option(metavar="NAME", help="kuberay: where the job is.")]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job's name, or one attempt: NAME-2.")]


@app.command("list")
def list_jobs(address: AddressOption = "local", namespace: NamespaceOption = "default") -> None:
    """List the jobs, the oldest first."""
    table = Table("job", "attempt", "status", "began (UTC)", "command", box=None)
    for job in _place(address, namespace).jobs():
        began = f"{job.began:%Y-%m-%d %H:%M:%S}" if job.began else "-"
        table.add_row(job.name, str(job.attempt), job.status, began, escape(job.line))
    Console().print(table)


@app.command()
def status(job: JobArgument, address: AddressOption = "local", namespace: NamespaceOption = "default") -> None:
    """Say how a job is doing."""
    found = _place(address, namespace).job(job)
    table = Table.grid(padding=(0, 2))
    for title, text in (
        ("job", f"{found.id}, attempt {found.attempt}"),
        ("status", found.status),
        ("", found.message),
        ("exit code", "" if found.exit_code is None else str(found.exit_code)),
        ("began", f"{found.began:%Y-%m-%d %H:%M:%S} UTC" if found.began else ""),
        ("ended", f"{found.ended:%Y-%m-%d %H:%M:%S} UTC" if found.ended else ""),
        ("command", found.line),
    ):
        if text:
            table.add_row(title, escape(text))
    Console(highlight=False).print(table)


@app.command()
def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", help="Until it ends, with its exit code.")] = False,
    address: AddressOption = "local",
    namespace: NamespaceOption = "default",
) -> None:
    """Print what a job has written."""
    place = _place(address, namespace)
    if follow:
        report_to_the_end(place, job)
    else:
        typer.echo(place.logs(place.job(job)), nl=False)


@app.command()
def stop(job: JobArgument, address: AddressOption = "local", namespace: NamespaceOption = "default") -> None:
    """Stop a job after a checkpoint; `resume` goes on from it."""
    place = _place(address, namespace)
    found = place.job(job)
    place.stop(found)
    typer.echo(f"job {found.id} stops after a checkpoint; next: cdrl jobs resume {found.name} --address {address}")


@app.command()
def resume(
    job: JobArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Show the log until it ends.")] = False,
    address: AddressOption = "local",
    namespace: NamespaceOption = "default",
    root: RootOption = "runs",
) -> None:
    """Begin a stopped or failed job again: the same command, which goes on from its checkpoints."""
    place = _place(address, namespace, root)
    begun = place.resume(job)
    typer.echo(f"resumed: job {begun}")
    if wait:
        report_to_the_end(place, begun)


@app.command(hidden=True)
def entry(command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...")]) -> None:
    """What a KubeRay job runs: a command, whose mistakes are not tried again."""
    from cdrl.cluster import inside

    raise typer.Exit(inside.entry(command))


@app.command(hidden=True)
def leave(grace: Annotated[float, typer.Option(min=0, metavar="SECONDS")] = 10.0) -> None:
    """What a pod runs before it is taken away: workers on it write a checkpoint."""
    from cdrl.cluster import inside

    inside.leave(grace)


def report_to_the_end(place: "Place", job: str) -> None:
    """Show what a job writes until it ends.

    Raises:
        JobRefused, JobFailed: as it ended.
    """
    from cdrl.cluster.jobs import follow, settle

    told = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        for text in follow(place, job, lambda line: told.print(escape(line), style="dim")):
            sys.stdout.write(text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        told.print(f"job {job} goes on; `cdrl jobs stop {job}` ends it")
        raise typer.Exit(130) from None
    settle(place.job(job))


def _place(address: str, namespace: str, root: str = "runs") -> "Place":
    from cdrl.cluster.places import place_at
    from cdrl.cluster.spec import named

    return place_at(address, named(namespace), root)
