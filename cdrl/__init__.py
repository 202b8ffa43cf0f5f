"""Cooperative diffusion recovery likelihood: energy-based generative models, one per noise level, on a Ray cluster."""

__version__ = "0.1.0"
