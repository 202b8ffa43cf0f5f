"""Where the result of a search of sampling settings goes: files in the run's folder, and the run's record in MLflow."""

import shlex
from pathlib import Path

import yaml
from numpy.typing import NDArray

from cdrl import storage
from cdrl.config import SamplingConfig
from cdrl.pictures import png_bytes
from cdrl.runs import RunRecord, Which
from cdrl.tracking.run import TrackedRun
from cdrl.tuning.sampling import FOLDER
from cdrl.tuning.sampling_card import SearchCard
from cdrl.tuning.sampling_plot import search_picture

__all__ = ["commands", "keep", "track"]

FILES = ("ranking.json", "curve.png", "best.yaml")


def commands(record: RunRecord, sampling: SamplingConfig, which: Which) -> list[str]:
    """The lines that score and draw with a setting of one of the run's checkpoints."""
    before = record.config.sampling.model_dump(mode="json")
    changed = {name: value for name, value in sampling.model_dump(mode="json").items() if value != before[name]}
    flow = yaml.safe_dump(changed, default_flow_style=True, sort_keys=False, width=10_000).strip()
    texts = {
        "num_steps": ("--steps", sampling.steps_text),
        "step_multiplier": ("--step-multiplier", sampling.multiplier_text),
        "noise_scale": ("--noise-scale", f"{sampling.noise_scale:g}"),
        "denoise_scale": ("--denoise", f"{sampling.denoise_scale:g}"),
        "guidance": ("--guidance", sampling.guidance_text),
    }
    options = [word for name in changed for word in texts.get(name, ())]
    run, is_best = str(record.directory), which == "best"
    setting = ["--set", f"sampling={flow}"] if changed else []
    return [
        shlex.join(["cdrl", "evaluate", run, *([] if is_best else ["--which", which]), *setting]),
        shlex.join(["cdrl", "sample", run if is_best else record.checkpoint(which), *options]),
    ]


def keep(card: SearchCard, shown: list[NDArray], record: RunRecord, own: SamplingConfig) -> Path:
    """Write `ranking.json`, `curve.png` and `best.yaml`; the folder that they are in.

    Args:
        shown: images of the run's own and of the chosen setting.
    """
    folder = record.directory / FOLDER
    best = own if card.chosen is None else card.chosen.candidate.sampling
    comments = [card.summary, *commands(record, best, card.which)]
    section = yaml.safe_dump({"sampling": best.model_dump(mode="json")}, default_flow_style=None, sort_keys=False)
    contents = (
        card.model_dump_json(indent=1).encode(),
        png_bytes(search_picture(card, shown)),
        ("".join(f"# {line}\n" for line in comments) + section).encode(),
    )
    for name, content in zip(FILES, contents, strict=True):
        storage.write_bytes(str(folder / name), content)
    return folder


def track(card: SearchCard, record: RunRecord) -> None:
    """Put figures and files on the run's record in MLflow.

    Raises:
        TrackingError: the server is out of reach or does not have the run.
    """
    journal = TrackedRun.attach(record)
    journal.log_metrics(card.metrics, card.step)
    journal.flush()
    for name in FILES:
        journal.log_artifact(record.directory / FOLDER / name, FOLDER)
