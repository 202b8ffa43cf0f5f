"""The image that every step runs in."""

import os

__all__ = ["IMAGE"]

IMAGE = os.environ.get("CDRL_IMAGE", "cdrl:0.1.0")
"""Read when a pipeline is compiled: `CDRL_IMAGE=registry.example/team/cdrl@sha256:... python -m pipeline compile`."""
