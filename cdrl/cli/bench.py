"""`cdrl bench CONFIG`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cdrl.cli.config import ConfigArgument, SetOption

__all__ = ["bench"]


def bench(
    source: ConfigArgument,
    overrides: SetOption = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images of a batch; default: the run's, on a CPU at most 8.")
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="cpu|cuda", help="Default: cuda where there is one.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Updates of each side.")] = 9,
    samplings: Annotated[int, typer.Option(min=0, help="Sampling batches of each side.")] = 3,
    compiled: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="compute.compile; takes up to a minute.")
    ] = None,
    chain: Annotated[str | None, typer.Option(metavar="fp32|tf32|fp16|bf16", help="compute.chain_precision.")] = None,
    loss: Annotated[str | None, typer.Option(metavar="fp32|tf32|fp16|bf16", help="compute.loss_precision.")] = None,
    initializer: Annotated[
        str | None, typer.Option(metavar="fp32|tf32|bf16", help="compute.initializer_precision.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write every figure there.")] = None,
) -> None:
    """Measure an update and a sampling batch, fast beside plain, on made-up images."""
    import torch

    from cdrl import config as configuration
    from cdrl import storage
    from cdrl.bench.compare import compare
    from cdrl.bench.machine import device_of, settle
    from cdrl.bench.table import report_table
    from cdrl.cli.evaluate import showing_progress

    place = device_of(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    asked = {"chain_precision": chain, "loss_precision": loss, "initializer_precision": initializer}
    asked["compile"] = None if compiled is None else "always" if compiled else "never"
    settings = [f"compute.{name}={value}" for name, value in asked.items() if value is not None]
    config = configuration.load(source, [*(overrides or ()), *settings])
    settle(place)
    size = batch_size or config.training.batch_size
    if batch_size is None and place.type == "cpu":
        size = min(size, 8)
    with showing_progress() as progress:
        report = compare(
            config, batch_size=size, device=place, repeats=repeats, samplings=samplings, progress=progress
        )
    if output is not None:
        storage.write_bytes(str(output), json.dumps(report.plain_values(), indent=1).encode())
    console = Console()
    table = report_table(report)
    width = max(console.width, console.measure(table, options=console.options.update(width=200)).maximum)
    Console(width=width).print(table, highlight=False)
