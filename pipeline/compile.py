"""The graph as the YAML that Kubeflow takes."""

import os
import tempfile
from pathlib import Path

from kfp import compiler

from pipeline.define import cdrl_pipeline

__all__ = ["COMPILED", "compile_pipeline"]

COMPILED = Path(__file__).with_name("cdrl-pipeline.yaml")
"""The committed copy, for those who have no kfp at hand; a test holds it to the code."""


def compile_pipeline(path: Path) -> None:
    """Write the compiled pipeline to `path` (.yaml), whole or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        aside = Path(folder, path.name)
        compiler.Compiler().compile(cdrl_pipeline, str(aside))
        os.replace(aside, path)
