"""The journal of a run: one class around the MLflow client. MLflow is imported here and in `cdrl.registry` only."""

import os

# Read by MLflow when it is imported: it may not phone home, and it may not print between our progress lines.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
