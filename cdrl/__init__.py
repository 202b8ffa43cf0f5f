"""Cooperative diffusion recovery likelihood: energy-based generative models, one per noise level, on a Ray cluster."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cdrl.model import Model

__all__ = ["__version__", "load"]

__version__ = "0.1.0"


def load(ref: str, device: str = "cpu", *, root: str = "runs", tracking: str | None = None) -> "Model":
    """A trained model, ready for `model.sample(...)`; nothing is unpickled, and every digest is checked.

    Args:
        ref: `models:/NAME@champion`, `models:/NAME/3`; a run's id or folder; the folder or `s3://` URI of a checkpoint,
            a package or a version.
        device: where the weights go.
        root: the folder of runs.
        tracking: the MLflow server; default: `MLFLOW_TRACKING_URI`, then the database below `root`.

    Raises:
        CdrlError: there is no such model, it is out of reach, or its files are not what its proof says.
    """
    from cdrl.registry.load import load as load_model

    return load_model(ref, device, root=root, tracking=tracking)
