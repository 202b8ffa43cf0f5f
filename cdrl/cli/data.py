"""`cdrl data prepare|inspect`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cdrl.errors import ConfigError, JobFailed, StorageError

if TYPE_CHECKING:
    from cdrl.data import Manifest
    from cdrl.data.manifest import Origin
    from cdrl.data.prepare import Progress

__all__ = ["app"]

MAX_SHOWN = 20
PLAIN_LINE_EVERY_S = 15.0

app = typer.Typer(help="Turn images into shards, and look at them.", no_args_is_help=True)

PathOption = Annotated[
    str | None, typer.Option(metavar="PATH", help="Folder, file or quoted glob of the source; root of torchvision.")
]
HoldoutPathOption = Annotated[
    str | None, typer.Option(metavar="PATH", help="The same for the hold-out split, instead of --holdout.")
]
HoldoutOption = Annotated[
    float | None,
    typer.Option(min=0, help="Rows held out: a fraction below 1 or a number. Default 0.1; digits 500; 0 for none."),
]
SizeOption = Annotated[int | None, typer.Option(min=1, help="Make images squares of this side, in pixels.")]
CropOption = Annotated[bool, typer.Option(help="With --size: cut the centre out (--no-crop: squeeze both sides).")]
GrayscaleOption = Annotated[
    bool | None, typer.Option("--grayscale/--rgb", help="One channel or three. Default: as the images are.")
]
ClassNamesOption = Annotated[
    str | None, typer.Option(metavar="A,B,...", help="Class names in order. Default: what the source holds.")
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Read at most this many rows of each path.")]
ShardRowsOption = Annotated[
    int | None, typer.Option(min=1, help="Rows of one shard. Default: what fits into 64 MiB.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Decides hold-out rows and the order inside the shards.")]
MaxBadOption = Annotated[
    int, typer.Option("--max-bad", min=0, help="Leave out, and list, at most this many rows that cannot be read.")
]
WorkersOption = Annotated[
    int, typer.Option(min=0, help="Decode with this many Ray workers; 0: in this process. The dataset is the same.")
]
AddressOption = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="With --workers: a Ray cluster. Default: start one here.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the dataset that is at URI.")]


@app.command()
def prepare(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="digits, checkerboard, gaussians, folder, parquet or torchvision:NAME."
        ),
    ],
    uri: Annotated[str, typer.Argument(metavar="URI", help="Where to: a path, file:// or s3://bucket/key.")],
    path: PathOption = None,
    holdout_path: HoldoutPathOption = None,
    holdout: HoldoutOption = None,
    size: SizeOption = None,
    crop: CropOption = True,
    grayscale: GrayscaleOption = None,
    class_names: ClassNamesOption = None,
    limit: LimitOption = None,
    shard_rows: ShardRowsOption = None,
    seed: SeedOption = 0,
    max_bad: MaxBadOption = 0,
    workers: WorkersOption = 0,
    address: AddressOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Turn a source into Arrow shards and a manifest at URI. What was killed goes on with the same command."""
    from cdrl.data import prepare as preparation

    if address is not None and not workers:
        raise ConfigError("--address names a Ray cluster, but --workers is 0: give the number of workers")
    options = preparation.Options(
        path=path,
        holdout_path=holdout_path,
        holdout=holdout,
        size=size,
        crop=crop,
        grayscale=grayscale,
        class_names=tuple(class_names.split(",")) if class_names else None,
        limit=limit,
        shard_rows=shard_rows,
        seed=seed,
    )
    console = Console()
    if not overwrite and (found := preparation.prepared(source, uri, options, max_bad=max_bad)):
        console.print(f"already prepared: {uri}: {_sizes(found)}", soft_wrap=True, highlight=False, markup=False)
        return
    with _progress(console) as show:
        made = preparation.prepare(
            source,
            uri,
            options,
            overwrite=overwrite,
            max_bad=max_bad,
            workers=workers,
            address=address,
            progress=show,
        )
    console.print(f"prepared: {uri}: {_sizes(made)}", soft_wrap=True, highlight=False, markup=False)
    if made.origin is not None and made.origin.failures:
        console.print(_failures(made.origin))


@contextmanager
def _progress(console: Console) -> "Iterator[Progress]":
    """A bar for rows with their rate and one for shards, or a plain line now and then where there is no terminal.

    A prepare that breaks off later says what to do.
    """
    from rich import progress

    class Rate(progress.ProgressColumn):
        def render(self, task: progress.Task) -> Text:
            return Text(f"{task.speed:,.0f} {task.description}/s" if task.speed else "")

    columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn(), Rate())
    last = progress.TimeRemainingColumn()
    with progress.Progress(*columns, last, console=console, transient=True, disable=not console.is_terminal) as display:
        bars = {what: display.add_task(what, total=None, start=False) for what in ("rows", "shards")}
        spoke_s = time.monotonic()

        def show(what: str, done: int, total: int) -> None:
            nonlocal spoke_s
            if not done:
                display.start_task(bars[what])
            display.update(bars[what], completed=done, total=total)
            if not console.is_terminal and time.monotonic() - spoke_s > PLAIN_LINE_EVERY_S:
                spoke_s = time.monotonic()
                console.print(f"{what} {done}/{total}", highlight=False)

        try:
            yield show
        except (KeyboardInterrupt, StorageError, JobFailed):
            if display.tasks[0].started:
                console.print("what is finished is kept: the same command goes on from there", highlight=False)
            raise


@app.command()
def inspect(
    uri: Annotated[str, typer.Argument(metavar="URI", help="A prepared dataset.")],
    picture: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Where the contact sheet goes. Default: into a local dataset.")
    ] = None,
) -> None:
    """Print what a dataset holds and draw a contact sheet of it."""
    from cdrl import pictures, storage
    from cdrl.data import Dataset, Manifest
    from cdrl.data.picture import contact_sheet

    manifest = Manifest.read(uri)
    console = Console()
    console.print(_facts(uri, manifest))
    if manifest.class_names:
        console.print(_classes(manifest))
    if manifest.origin is not None and manifest.origin.failures:
        console.print(_failures(manifest.origin))
    image = contact_sheet(Dataset.open(uri, tell=lambda text: console.print(text, soft_wrap=True, markup=False)))
    place = picture or (storage.local_path(uri) if storage.is_local(uri) else Path()) / "contact-sheet.png"
    storage.write_bytes(str(place), pictures.png_bytes(image))
    console.print(f"contact sheet: {place}", soft_wrap=True, highlight=False, markup=False)


def _sizes(manifest: "Manifest") -> str:
    rows = ", ".join(f"{name} {split.rows}" for name, split in manifest.splits.items())
    shape = "x".join(map(str, manifest.shape))
    classes = f"{len(manifest.class_names)} classes" if manifest.class_names else "no labels"
    return f"{rows} rows of {shape} {manifest.dtype}, {classes}, digest {manifest.digest[:12]}"


def _facts(uri: str, manifest: "Manifest") -> Table:
    table = Table("", "", box=None, show_header=False)
    table.add_row("dataset", escape(uri))
    table.add_row("source", escape(f"{manifest.source} {manifest.path or ''}".rstrip()))
    table.add_row("row", f"{'x'.join(map(str, manifest.shape))} {manifest.dtype}")
    table.add_row("mean", "  ".join(f"{value:.2f}" for value in manifest.mean))
    table.add_row("std", "  ".join(f"{value:.2f}" for value in manifest.std))
    table.add_row("digest", manifest.digest)
    for name, split in manifest.splits.items():
        size_mb = sum(shard.bytes for shard in split.shards) / 1e6
        table.add_row(name, f"{split.rows} rows, {len(split.shards)} shards, {size_mb:.1f} MB")
    return table


def _classes(manifest: "Manifest") -> Table:
    table = Table("label", "class", box=None)
    for split_name in manifest.splits:
        table.add_column(f"{split_name} rows", justify="right")
    for label, name in enumerate(("(none)", *manifest.class_names)):
        counts = [split.label_counts[label] for split in manifest.splits.values()]
        if label or any(counts):
            table.add_row(str(label), escape(name), *map(str, counts))
    return table


def _failures(origin: "Origin") -> Table:
    shown = origin.failures[:MAX_SHOWN]
    title = f"{origin.num_failures} rows could not be read and were left out"
    table = Table("row", "reason", box=None, title=title, title_justify="left")
    for failure in shown:
        table.add_row(escape(failure.where), escape(failure.reason))
    if origin.num_failures > len(shown):
        table.add_row("...", f"{origin.num_failures - len(shown)} more; the manifest lists the first few hundred")
    return table
