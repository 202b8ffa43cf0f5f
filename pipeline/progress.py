"""What a person sees of a pipeline on this machine: a line when a step begins or ends, a table at the end."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["showing"]

STYLES = {"finished": "green", "finished before": "green", "left out": "dim", "failed": "red", "stopped": "yellow"}


@contextmanager
def showing(steps: list[str], name: str) -> Iterator[Callable[[str, str], None]]:
    """A callback for `Execution`; between its lines the steps' own commands write to the same terminal."""
    console = Console(highlight=False, soft_wrap=True)
    began_s, became, times = time.monotonic(), dict[str, str](), dict[str, float]()

    def tell(step: str, what: str) -> None:
        now_s = time.monotonic()
        if not step:
            console.print(escape(what), style="yellow")
            return
        if what == "runs":
            times[step] = -now_s
        elif step in times:
            times[step] += now_s
        became[step] = what
        place = f"{steps.index(step) + 1}/{len(steps)}"
        spent = f" [dim]({now_s - began_s:.0f} s)[/]"
        console.print(f"[bold]{place}[/] [{STYLES.get(what, 'cyan')}]{escape(step)}: {what}[/]{spent}")

    console.print(f"[bold]{escape(name)}[/]: {escape(' -> '.join(steps))}")
    try:
        yield tell
    finally:
        table = Table("step", "", "seconds", box=None)
        table.columns[2].justify = "right"
        for step in steps:
            what = became.get(step, "not reached")
            seconds = f"{times[step]:.0f}" if times.get(step, -1) >= 0 else "-"
            table.add_row(escape(step), f"[{STYLES.get(what, 'dim')}]{what}[/]", seconds)
        console.print(table)
        console.print(f"{time.monotonic() - began_s:.0f} s", style="dim")
