"""`cdrl report`."""

import json
from typing import Annotated

import typer

from cdrl.cli.places import RootOption

__all__ = ["report"]


def report(
    run: Annotated[
        str, typer.Argument(metavar="RUN|CARD", help="A run (id, beginning of it, folder) or a score card's file.")
    ],
    page: Annotated[str | None, typer.Option(metavar="HTML", help="Copy the report there, one file.")] = None,
    scores: Annotated[str | None, typer.Option(metavar="JSON", help="Write the figures there, name: number.")] = None,
    root: RootOption = "runs",
) -> None:
    """Show again what `cdrl evaluate` found, or hand it on as files; nothing is measured."""
    from cdrl import storage
    from cdrl.cli.evaluate import show_card
    from cdrl.evaluation.compare import find_card
    from cdrl.evaluation.run import figures

    found = find_card(run, root)
    folder = found.path.parent
    if page is not None:
        storage.write_bytes(page, storage.read_bytes(str(folder / "report.html")))
    if scores is not None:
        content = figures(found.card) | {"images": found.card.protocol.num_generated, "step": found.card.step}
        storage.write_bytes(scores, json.dumps(content, indent=1).encode())
    show_card(found.card, folder)
