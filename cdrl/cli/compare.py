"""`cdrl compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from cdrl.evaluation.compare import Found

__all__ = ["compare"]


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A run (id, beginning of it, folder) or a score card's file.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    picture: Annotated[Path | None, typer.Option(metavar="PNG", help="Samples of both, side by side.")] = None,
    root: Annotated[str, typer.Option("--root", metavar="FOLDER", help="The folder of runs.")] = "runs",
) -> None:
    """Set the scores of two runs side by side; refused where they were measured differently."""
    from cdrl import storage
    from cdrl.evaluation.compare import find_card, side_by_side
    from cdrl.pictures import png_bytes

    left, right = find_card(a, root), find_card(b, root)
    console = Console(highlight=False, soft_wrap=True)
    console.print(_table(left, right))
    if left.card.model_digest == right.card.model_digest:
        console.print("the weights are the same", style="dim")
    console.print(f"both {left.card.protocol.describe()}", style="dim")
    for letter, found in (("A", left), ("B", right)):
        card = found.card
        console.print(f"{letter}: {card.run_id or found.name}, update {card.step}, weights {card.model_digest[:8]}")
    if picture is not None:
        storage.write_bytes(str(picture), png_bytes(side_by_side(left, right)))
        console.print(f"picture: {picture}")


def _table(left: "Found", right: "Found") -> Table:
    from cdrl.evaluation.compare import compare as differences
    from cdrl.evaluation.protocol import figure

    table = Table("", "A", "B", "B - A", "", box=None)
    for column in table.columns[1:4]:
        column.justify = "right"
    for each in differences(left, right):
        name = left.card.protocol.title(each.name)
        values = figure(each.a, each.a_error), figure(each.b, each.b_error), figure(each.b - each.a, each.error)
        table.add_row(name, *values, each.verdict)
    return table
