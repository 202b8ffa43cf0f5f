"""A report as a table: both formulations, and how many times the fast one fits into the plain one."""

from collections.abc import Callable
from functools import partial

from rich.table import Table

from cdrl.bench.compare import NUM_IMAGES, Figures, Report, Spread
from cdrl.bench.subject import PHASES

__all__ = ["report_table"]


def report_table(report: Report) -> Table:
    """Every figure of a report; times are medians, extremes in brackets."""
    plain, fast = report.figures["plain"], report.figures["fast"]
    table = Table("", "plain", "fast", "plain / fast", box=None, title=_title(report), title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"

    def row(what: str, show: Callable[[Figures], str], ratio: str = "") -> None:
        table.add_row(what, show(plain), show(fast), ratio)

    row("one update, s", lambda f: _spread(f.update_s), _times(report.speedup["update"]))
    for phase, what in PHASES.items():
        if phase in plain.phases_s:
            ratio = _share(plain.phases_s[phase], fast.phases_s[phase]) if phase != "prepare" else ""
            row(f"  {what}", partial(_phase, phase), ratio)
    row("chain with preparation, s", lambda f: _spread(f.chain_s), _times(report.speedup["chain"]))
    row("images/s, training", lambda f: _rate(f.images_per_s))
    row("chain steps/s, batches", lambda f: _rate(f.chain_steps_per_s))
    row("chain steps/s, images", lambda f: _rate(f.chain_steps_per_s * report.batch_size))
    if "sampling" in report.speedup:
        row("one sampling batch, s", lambda f: _spread(f.sampling_s), _times(report.speedup["sampling"]))
        row("images/s, sampling", lambda f: _rate(f.samples_per_s or 0))
        row(f"{NUM_IMAGES:,} samples, at this rate", lambda f: _duration(NUM_IMAGES / (f.samples_per_s or 1)))
    for what, name in (
        ("GFLOP, one image of an update", "update_flops"),
        ("GFLOP, one sample", "sample_flops"),
    ):
        counts = [getattr(f.counts, name) / 1e9 for f in (plain, fast)]
        table.add_row(what, *(f"{count:.4g}" for count in counts), _share(*counts))
    for what in report.speedup:
        if plain.utilisation:
            row(f"share of the peak, {what}", partial(_utilisation, what))
    for what, name in (("kernels, one update", "update_kernels"), ("kernels, one sampling batch", "sampling_kernels")):
        numbers = [getattr(f.counts, name) for f in (plain, fast)]
        table.add_row(what, *(f"{number:,}" for number in numbers), _share(*numbers))
    if fast.peak_memory_bytes is not None:
        row("memory of updates, peak", lambda f: f"{(f.peak_memory_bytes or 0) / 2**30:.2f} GiB")
    table.caption = f"peak: {report.peak}; both sides in one process: {report.peak_rss_bytes / 2**30:.1f} GiB resident"
    table.caption_justify = "left"
    return table


def _title(report: Report) -> str:
    fast, machine = report.fast, report.machine
    parts = [f"chain {fast['chain_precision']}", f"losses {fast['loss_precision']}"]
    parts += [f"initializer {fast['initializer_precision']}"]
    parts += [name for name in ("compile", "graph") if fast[name]]
    threads = "" if report.device == "cuda" else f", {machine['threads']} thread, load {machine['load_average'][0]:.1f}"
    return (
        f"{report.name}: B = {report.batch_size}, K = {report.num_steps}, {report.repeats} rounds on "
        f"{machine.get('gpu', machine['cpu'])}{threads}\nfast: {', '.join(parts)}\n"
    )


def _phase(phase: str, figures: Figures) -> str:
    seconds = figures.phases_s[phase]
    return f"{seconds:.3f}" if seconds >= 0.1 else f"{seconds:.2g}"


def _utilisation(of: str, figures: Figures) -> str:
    return f"{figures.utilisation[of]:.1%}"


def _spread(spread: Spread | None) -> str:
    assert spread is not None
    return f"{spread.median:.3g} ({spread.low:.3g} ... {spread.high:.3g})"


def _rate(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _times(spread: Spread) -> str:
    return f"{spread.median:.2f}x ({spread.low:.2f} ... {spread.high:.2f})"


def _share(plain: float, fast: float) -> str:
    return f"{plain / fast:.2f}x"


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
