"""`cdrl demo`: the main job on embedded data, from images to a promoted model."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from cdrl import config as configuration
from cdrl.cli.config import SetOption

if TYPE_CHECKING:
    from cdrl.evaluation.protocol import ScoreCard

__all__ = ["demo"]


def demo(
    preset: Annotated[str, typer.Option(help="A preset on the digits: digits or digits-per-level.")] = "digits",
    root: Annotated[str, typer.Option("--root", metavar="FOLDER", help="Where everything goes.")] = "runs",
    overrides: SetOption = None,
) -> None:
    """Prepare handwritten digits, train, score, register, promote and sample: a few minutes on two cores."""
    began_s = time.monotonic()
    console = Console()
    data = str(Path(root) / "data" / "digits")

    from cdrl.cli import sample
    from cdrl.cli.evaluate import score_table, showing_progress
    from cdrl.data.prepare import prepare
    from cdrl.errors import GateFailed, JobFailed
    from cdrl.evaluation.reference import QuickScore
    from cdrl.evaluation.run import FOLDER, evaluate_run
    from cdrl.registry.promote import promote
    from cdrl.registry.versions import Registry
    from cdrl.runs import absolute
    from cdrl.training.launch import launch

    config = absolute(configuration.load(preset, [f"run.root={root}", f"data.uri={data}", *(overrides or ())]))

    def step(number: int, text: str) -> None:
        spent_s = time.monotonic() - began_s
        console.print(f"[bold cyan]{number}/6[/] {text} [dim]({spent_s:.0f} s)[/]", highlight=False, soft_wrap=True)

    step(1, f"prepare: scikit-learn's handwritten digits -> Arrow shards in {data}")
    prepare("digits", data)
    step(2, f"train: {config.training.num_updates} updates with {config.cluster.max_workers} Ray workers")
    score = QuickScore(config) if config.run.score_samples else None
    outcome = launch(config, score=score, console=console)
    if not outcome.complete:
        raise JobFailed(f"stopped at {outcome.step} of {config.training.num_updates} updates; run the demo again")
    step(3, f"evaluate: {config.evaluation.num_samples} samples with averaged weights, and as many without chains")
    alone = config.cluster.model_copy(update={"num_workers": 1})  # digits are drawn sooner than workers start
    with showing_progress() as progress:
        scored = config.model_copy(update={"cluster": alone})
        card = evaluate_run(outcome.record, config=scored, progress=progress).card
    console.print(score_table(card))
    record = outcome.record
    registry = Registry(record.tracking_uri)
    version = registry.register(str(record.directory), root=root)
    step(4, f"register: {version.name} version {version.number}")
    try:
        promote(registry, version.name, str(version.number))
        verdict = f"version {version.number} is [bold]champion[/]"
    except GateFailed as refusal:
        verdict = f"not promoted: {refusal}"
    step(5, f"promote: {verdict}")
    step(6, f"sample: models:/{version.name}@champion")
    champion = registry.load(f"{version.name}@champion")
    sample.draw(champion, 100, record.directory / "samples.png")
    sample.draw(champion, 10, record.directory / "path.png", path=True)
    console.print(_panel(card, record.directory, record.directory / FOLDER, verdict, record.tracking_uri))
    console.print(f"done in {time.monotonic() - began_s:.0f} s", style="dim", highlight=False)


def _panel(card: "ScoreCard", directory: Path, evaluation: Path, verdict: str, tracking: str) -> Panel:
    """Where everything is, and what it is worth."""
    here = Path.cwd()

    def shown(path: Path) -> str:
        return str(path.relative_to(here) if path.is_relative_to(here) else path)

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    k0 = "" if card.k0 is None else f", initializer alone (K = 0) {card.k0['frechet']:.2f}"
    metric = f"{card.protocol.metric} {card.scores['frechet']:.2f}, real images {card.floor['frechet']:.2f}{k0}"
    for name, text in (
        ("pictures", shown(directory / "samples.png")),
        ("", f"{shown(directory / 'path.png')}: from noise to digit, level by level"),
        ("", f"{shown(evaluation / 'comparison.png')}: K, K = 0 and real images"),
        ("score", f"{metric}  (lower is better)"),
        ("model", verdict),
        ("look closer", f"mlflow ui --backend-store-uri {tracking.replace(str(here) + '/', '')}"),
    ):
        table.add_row(f"[bold]{name}", text)
    return Panel(table, title="cdrl demo", expand=False)
