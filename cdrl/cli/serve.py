"""`cdrl serve REF`: MLflow's scoring server in front of one checked version."""

from typing import Annotated

import typer
from rich.console import Console

from cdrl.cli.places import RootOption, TrackingOption

__all__ = ["serve"]


def serve(
    ref: Annotated[str, typer.Argument(metavar="REF", help="models:/NAME@champion, NAME/3, or a version's folder.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where to listen.")] = 5001,
    host: Annotated[str, typer.Option(help="Other machines reach it only under another address than this.")] = (
        "127.0.0.1"
    ),
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with the model.")] = 1,
    root: RootOption = "runs",
    tracking: TrackingOption = None,
) -> None:
    """Answer POST /invocations with images until Ctrl-C. Whoever reaches the port may ask: there is no password."""
    from cdrl.registry.load import verified
    from cdrl.registry.serve import serving

    console = Console(highlight=False, markup=False, soft_wrap=True)
    with verified(ref, root=root, tracking=tracking) as (folder, proof):
        address = f"http://{host}:{port}"
        console.print(f"model {proof.model_digest[:12]} at {address}/invocations; Ctrl-C ends it. Ask it with")
        body = '{"dataframe_records": [{"n": 4}], "params": {"seed": 1}}'
        console.print(f"curl {address}/invocations -H 'Content-Type: application/json' -d '{body}'")
        raise typer.Exit(serving(folder, host=host, port=port, num_workers=workers))
