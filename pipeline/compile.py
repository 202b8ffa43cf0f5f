"""A graph as the YAML that Kubeflow takes."""

import os
import tempfile
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler

from cdrl.errors import StorageError
from pipeline.define import PIPELINES

__all__ = ["COMMITTED", "compile_pipeline", "documents"]

COMMITTED = Path(__file__).with_name("compiled")
"""Every graph as YAML, for those who have no kfp at hand; a test holds it to the code."""


def compile_pipeline(name: str, path: Path) -> None:
    """Write a compiled pipeline to `path` (.yaml), whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            aside = Path(folder, path.name)
            compiler.Compiler().compile(PIPELINES[name], str(aside))
            os.replace(aside, path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from None


def documents(name: str) -> list[dict[str, Any]]:
    """The pipeline, and what it asks of Kubernetes, as they would be written."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pipeline.yaml")
        compile_pipeline(name, path)
        return list(yaml.load_all(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
