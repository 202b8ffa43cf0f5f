"""`cdrl track sync|status`."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from cdrl.tracking.sync import State

__all__ = ["app"]

app = typer.Typer(help="Bring a run's journal to its MLflow server.", no_args_is_help=True)

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, a unique beginning of it, or its folder.")]
RootOption = Annotated[str, typer.Option("--root", metavar="FOLDER", help="The folder of runs.")]


@app.command()
def sync(
    run: RunArgument,
    root: RootOption = "runs",
    to: Annotated[
        str | None, typer.Option("--to", metavar="URI", help="Another MLflow server: it becomes the run's, with all.")
    ] = None,
    patience: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long a server that does not answer is waited for.")
    ] = 20.0,
    if_any: Annotated[bool, typer.Option("--if-any", help="A run that did not begin is no mistake.")] = False,
) -> None:
    """Send what the server does not have; a run whose process died is marked. Exit code 1: the server stays away."""
    from cdrl import storage
    from cdrl.cli.evaluate import showing_progress
    from cdrl.runs import RunRecord
    from cdrl.tracking.server import shown
    from cdrl.tracking.sync import synchronise

    if if_any and RunRecord.find(run, root) is None:
        Console(soft_wrap=True).print(f"run {run}: it did not begin; nothing to send", highlight=False, markup=False)
        return
    record, told = RunRecord.read(run, root), set[str]()

    def tell(text: str, lost_s: float) -> None:
        del lost_s
        if text not in told:  # the same at each try
            Console(stderr=True, soft_wrap=True).print(text, highlight=False)
        told.add(text)

    with storage.patience(patience, tell), showing_progress() as progress:
        found = synchronise(record, to, lambda done, total: progress("entries", done, total))
    console = Console(soft_wrap=True, highlight=False)
    if found.num_torn_bytes:
        console.print(f"the last line was torn when its writer was killed: {found.num_torn_bytes} bytes are left out")
    for name in found.gone:
        console.print(f"{record.directory / name} is gone or damaged: not sent")
    what = f"sent {_counts(found)}" if found.pending else "nothing to send"
    console.print(f"{what}; MLflow at {shown(found.uri)} has run {found.mlflow_run_id}, {_status(found)}")


@app.command()
def status(run: RunArgument, root: RootOption = "runs") -> None:
    """Say how much the server does not have yet, without asking it."""
    from cdrl.runs import RunRecord
    from cdrl.tracking.server import shown
    from cdrl.tracking.sync import state

    found = state(RunRecord.read(run, root))
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"journal: {_status(found)}, {_counts(found) if found.pending else 'nothing'} to send")
    known = f"run {found.mlflow_run_id}" if found.mlflow_run_id else "it never answered: no run there yet"
    console.print(f"server: {shown(found.uri)}, {known}")


def _counts(found: "State") -> str:
    total = sum(found.pending.values())
    return f"{total} entries ({', '.join(f'{number} {kind}' for kind, number in found.pending.items())})"


def _status(found: "State") -> str:
    return found.status if found.is_driven or found.status != "RUNNING" else "RUNNING, but its process is dead"
