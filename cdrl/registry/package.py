"""A model version's files: weights, configuration, schedule, score card, proof, and the code that loads them."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec
from pydantic import ValidationError

import cdrl
from cdrl.errors import RegistryError
from cdrl.evaluation.protocol import ScoreCard
from cdrl.model import Model
from cdrl.registry.proof import SCHEDULE, SCORECARD, first_fault, schedule_table, seal
from cdrl.weights import pair_file

__all__ = ["card_text", "save", "scorecard", "signature"]

# What the code of a model imports when it samples. Named here because MLflow would ask a package index to find out.
REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "pydantic", "pyyaml", "safetensors", "torch", "torchvision")


def save(source: Path, model: Model, card: ScoreCard | None, directory: Path, **origin: str) -> str:
    """Write a version's files to `directory`, which must be empty or absent, in MLflow's layout; the proof's SHA-256.

    `source` is the checkpoint or package that `model` was loaded from; the model's own files are taken from it as they
    are. They lie in `proof.FOLDER`; the project's code lies in `code`, so that a version loads where cdrl is not
    installed and keeps the code it was made with. The proof is written last; `origin` is as in `proof.seal`.
    """
    with TemporaryDirectory() as scratch:
        package, code = Path(scratch, "package"), Path(scratch, "cdrl")
        package.mkdir()
        for name in ("model.json", *map(pair_file, range(len(model.ladder.pairs)))):
            shutil.copy(source / name, package)
        if card is not None:
            (package / SCORECARD).write_text(card_text(card))
        (package / SCHEDULE).write_text(json.dumps(schedule_table(model.config.schedule), indent=1) + "\n")
        shutil.copytree(Path(cdrl.__file__).parent, code, ignore=shutil.ignore_patterns("__pycache__"))
        mlflow.pyfunc.save_model(
            directory,
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"package": str(package)},
            code_paths=[str(code)],
            signature=signature(model),
            input_example=(_example(model), {"seed": 0, "guidance": _own_guidance(model)}),
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS],
        )
    return seal(directory, model, **origin)


def card_text(card: ScoreCard) -> str:
    """The content of `scorecard.json`, and of the tag that repeats it on the server."""
    return card.model_dump_json(indent=2) + "\n"


def scorecard(run: Path, model: Model) -> ScoreCard | None:
    """The score card in a run's folder that was measured on exactly this model, the newest of several; else None.

    Raises:
        RegistryError: a card is damaged.
    """
    cards = []
    for file in (run / "evaluation").glob("score-*.json"):
        try:
            cards.append(ScoreCard.model_validate_json(file.read_bytes()))
        except ValidationError as error:
            raise RegistryError(
                f"{file}: not a readable score card: {first_fault(error)}; run `cdrl evaluate` again"
            ) from None
    ours = [card for card in cards if card.model_digest == model.digest]
    return max(ours, key=lambda card: card.created, default=None)


def signature(model: Model) -> ModelSignature:
    """What `predict` takes and gives: one row per request, the seed and the guidance for all of them."""
    is_image, weight = len(model.config.data.shape) > 1, _own_guidance(model)
    shape = (-1,) if isinstance(weight, list) else None
    return ModelSignature(
        inputs=Schema([ColSpec("long", "n"), ColSpec("string", "label", required=False)]),
        outputs=Schema([TensorSpec(np.dtype(np.uint8 if is_image else np.float32), (-1, *model.config.data.shape))]),
        params=ParamSchema([ParamSpec("seed", "long", 0), ParamSpec("guidance", "double", weight, shape)]),
    )


def _own_guidance(model: Model) -> float | list[float]:
    """One weight, or one for each level."""
    weight = model.config.sampling.guidance
    return list(weight) if isinstance(weight, tuple) else weight


def _example(model: Model) -> pd.DataFrame:
    return pd.DataFrame({"n": [2], "label": [model.class_names[0] if model.config.data.num_classes else ""]})
