"""The model as MLflow serves it: `mlflow.pyfunc.load_model("models:/NAME@champion").predict(...)`.

MLflow copies this file into every model version and runs it on loading ("models from code"): nothing is unpickled.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from cdrl.errors import CdrlError, ConfigError
from cdrl.model import Model
from cdrl.pictures import to_uint8
from cdrl.registry.proof import check_package


class Generator(PythonModel):
    """Draws images on request."""

    def load_context(self, context: PythonModelContext) -> None:
        """Check the package against its proof and read it once, on the GPU where there is one."""
        package = Path(context.artifacts["package"])
        check_package(package)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = Model.load(package, device=device)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """Images for each row's `n` and `label` (class name; empty or absent: any), in the order of the rows.

        Args:
            model_input: columns n (int, >= 1) and, optionally, label (str).
            params: seed (int, >= 0; the same request gives the same images) and guidance (float, or one for
                each level where the model has one for each; default: the model's).

        Returns:
            uint8 of shape (sum of n, channels, height, width); for points float32 of shape (sum of n, dims).

        Raises:
            MlflowException: INVALID_PARAMETER_VALUE for a request that the model cannot serve.
        """
        config = self.model.config
        knobs = {"seed": 0, "guidance": config.sampling.guidance, **(params or {})}
        try:
            labels = torch.cat([self._labels(row) for row in model_input.to_dict("records")])
            if knobs["seed"] < 0:
                raise ConfigError(f"seed: expected >= 0, got {knobs['seed']}")
            weight = np.asarray(knobs["guidance"], float).tolist()
            guidance = tuple(weight) if isinstance(weight, list) else weight
            sampling = config.sampling.model_copy(update={"guidance": guidance})
            drawn = self.model.sample(len(labels), labels=labels, seed=int(knobs["seed"]), sampling=sampling)
        except CdrlError as error:  # MlflowException is what a scoring server passes on, with status 400
            raise MlflowException.invalid_parameter_value(str(error)) from error
        return (to_uint8(drawn) if len(config.data.shape) == 3 else drawn).numpy()

    def _labels(self, row: dict[str, Any]) -> torch.Tensor:
        """One row as (n,) int64 labels."""
        if row["n"] < 1:
            raise ConfigError(f"n: expected at least 1 image, got {row['n']}")
        name = row.get("label")
        return torch.full((row["n"],), self.model.label_of(None if pd.isna(name) else name))


set_model(Generator())
