"""Pictures of a sweep: parallel coordinates, what mattered, and the best schedule beside the paper's."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from cdrl.build import build_schedule
from cdrl.config import Config, ScheduleConfig
from cdrl.method.schedule import Schedule
from cdrl.tuning.notes import Trial
from cdrl.tuning.propose import importances
from cdrl.tuning.space import setting
from cdrl.tuning.sweep import Sweep

__all__ = ["importance_plot", "parallel_plot", "schedules_plot", "shared_step"]

LABEL_HEIGHT = 0.028  # of the picture of the trials
MAX_FD_RATIO = 30.0  # colours and the last axis end here, in units of the best


def parallel_plot(sweep: Sweep, trials: Sequence[Trial]) -> Image.Image:
    """A line for each trial through the values of all its parameters to its distance; thick: went all the way."""
    scored = sorted((trial for trial in trials if trial.fd is not None), key=lambda trial: -(trial.fd or 0))
    keys = list(sweep.space.parameters)
    columns = {key: [_shown(sweep.config, trial, key) for trial in scored] for key in keys}
    figure = Figure(figsize=(2.0 + 1.7 * (len(keys) + 1), 5.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.3, len(keys) + 0.3), ylim=(-0.08, 1.08), yticks=[])
    heights = [_heights(columns[key], log=sweep.space.parameters[key].log) for key in keys]
    fds = np.array([min(trial.fd or 0, MAX_FD_RATIO * (scored[-1].fd or 1)) for trial in scored])
    logs = np.log(np.maximum(fds, 1e-6)) if len(fds) else fds
    fall = (logs - logs.min()) / max(np.ptp(logs), 1e-12) if len(fds) else logs
    labels = _apart(fall[::-1])[::-1]  # of equal heights the better one stands lower
    for at, trial in enumerate(scored):
        line = [height[0][at] for height in heights] + [fall[at]]
        is_whole = trial.state == "complete"
        style: dict[str, Any] = {"linewidth": 2.2 if is_whole else 1.0, "alpha": 0.95 if is_whole else 0.6}
        axes.plot(range(len(line)), line, color=colormaps["viridis"](fall[at]), **style)
        name, place = f"t{trial.number:03d} {trial.fd:.3g}", (len(keys), labels[at])
        axes.annotate(name, place, xytext=(5, -3), textcoords="offset points", fontsize=7)
    for at, (_, ticks) in enumerate(heights):
        axes.axvline(at, color="gray", linewidth=0.8)
        for height, text in ticks:
            axes.annotate(text, (at, height), xytext=(3, 2), textcoords="offset points", fontsize=8, color="dimgray")
    axes.axvline(len(keys), color="gray", linewidth=0.8)
    names = [*(key.replace(".", ".\n", 1) for key in keys), "FD,\nlower is better"]
    axes.set_xticks(range(len(names)), names, fontsize=9)
    title = f"sweep {sweep.name}: {len(scored)} trials, darker is better; thin lines were ended early"
    axes.set_title(title, fontsize=10)
    return _image(figure)


def importance_plot(sweep: Sweep, trials: Sequence[Trial]) -> Image.Image:
    """The share of each parameter in the spread of ln FD, where all trials that count had made as many updates."""
    step, measured = shared_step(trials)
    keys = list(sweep.space.parameters)
    rows = [_numbers(sweep, trial) for trial in measured]
    shares = importances(rows, [float(np.log(max(fd, 1e-6))) for fd in (_at(trial, step) for trial in measured)])
    figure = Figure(figsize=(8, 1.6 + 0.45 * len(keys)), layout="constrained")
    axes = figure.subplots()
    if shares:
        names = list(shares)[::-1]
        axes.barh(names, [shares[name] for name in names], color="C0")
        axes.set(xlim=(0, 1), xlabel="share of the spread of ln FD (fANOVA)")
    else:
        axes.text(0.5, 0.5, "too few trials to say", ha="center", va="center")
        axes.set(xticks=[], yticks=[])
    few = ": few, take it with care" if len(measured) < 5 * len(keys) else ""
    axes.set_title(f"what mattered at update {step}, of {len(measured)} trials{few}", fontsize=10)
    return _image(figure)


def schedules_plot(best: ScheduleConfig, paper: ScheduleConfig, names: tuple[str, str]) -> Image.Image:
    """Two schedules over the same axes: where the levels lie, their noise, and the steps of their chains."""
    figure = Figure(figsize=(15, 4.4), layout="constrained")
    logsnr, noise, size, weight = figure.subplots(1, 4)
    panels = (logsnr, noise, size, weight)
    for name, config, colour, mark in zip(names, (best, paper), ("C3", "C0"), ("o", "s"), strict=True):
        _draw(panels, build_schedule(config), {"label": name, "color": colour, "marker": mark})
    logsnr.set(title="logSNR", xlabel="t / T")
    noise.set(title="sigma_ts, noise of a transition")
    size.set(title="s / sigma_ts, step by noise", ylim=(0, None))
    weight.set(title="loss weight", ylim=(0, None))
    for axes in (noise, size, weight):
        axes.set(xlabel="logSNR of its clean side")
        axes.invert_xaxis()
    for axes in panels:
        axes.grid(alpha=0.3)
    logsnr.legend(fontsize=9)
    return _image(figure)


def shared_step(trials: Sequence[Trial]) -> tuple[int, list[Trial]]:
    """The latest update at which every scored trial that did not diverge has a score; and these trials."""
    measured = [trial for trial in trials if trial.scores and trial.state not in ("diverged", "failed")]
    steps = [{score.step for score in trial.scores} for trial in measured]
    shared = set.intersection(*steps) if steps else set()
    return (max(shared), measured) if shared else (0, [])


def _apart(heights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Heights (n,) within 0 ... 1 moved as little as lets a line of text stand at each, as far as there is room."""
    gap = min(LABEL_HEIGHT, 1 / max(len(heights) - 1, 1))
    rank = np.argsort(np.argsort(heights, kind="stable"))
    fences = np.sort(heights) - gap * np.arange(len(heights))
    up, down = np.maximum.accumulate(fences), np.minimum.accumulate(fences[::-1])[::-1]
    spread = np.clip((up + down) / 2, 0, 1 - gap * (len(heights) - 1)) if len(heights) else fences
    return (spread + gap * np.arange(len(heights)))[rank]


def _draw(panels: Sequence[Any], schedule: Schedule, style: Mapping[str, Any]) -> None:
    logsnr, noise, size, weight = panels
    tr = schedule.constants
    count = schedule.num_levels
    logsnr.plot(np.arange(count + 1) / count, schedule.logsnr, **style)
    noise.plot(tr.logsnr_s, tr.sigma_ts, **style)
    size.plot(tr.logsnr_s, tr.step_size.sqrt() / tr.sigma_ts, **style)
    weight.plot(tr.logsnr_s, tr.loss_weight, **style)


def _at(trial: Trial, step: int) -> float:
    return next(score.fd for score in trial.scores if score.step == step)


def _shown(config: Config, trial: Trial, key: str) -> Any:
    """A parameter's value in a trial, the configuration's own where it has none; of a list the mean of logs."""
    value = trial.parameters[key] if key in trial.parameters else setting(config.model_dump(mode="json"), key)
    if isinstance(value, list | tuple) and all(isinstance(each, int | float) and each > 0 for each in value):
        return float(np.exp(np.mean(np.log(value))))
    return value


def _heights(values: Sequence[Any], *, log: bool) -> tuple[list[float], list[tuple[float, str]]]:
    """Places 0 ... 1 on an axis, and its ticks."""
    if values and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        places = np.log(values) if log else np.array(values, dtype=float)
        low, span = places.min(), float(np.ptp(places)) or 1.0
        return list((places - low) / span), [(0.0, f"{min(values):.3g}"), (1.0, f"{max(values):.3g}")]
    names = sorted({json.dumps(value) for value in values})
    place = {name: at / max(1, len(names) - 1) for at, name in enumerate(names)}
    return [place[json.dumps(value)] for value in values], [(height, name[:16]) for name, height in place.items()]


def _numbers(sweep: Sweep, trial: Trial) -> dict[str, float]:
    """Every parameter as a number: logarithms where its range has them, choices by their place."""
    row = {}
    for key, each in sweep.space.parameters.items():
        value = _shown(sweep.config, trial, key)
        if each.choices is not None:
            row[key] = float(each.choices.index(value)) if value in each.choices else -1.0
        else:
            row[key] = float(np.log(value)) if each.log else float(value)
    return row


def _image(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return Image.open(buffer).convert("RGB")
