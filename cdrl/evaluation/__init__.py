"""Scores with their protocol: features, fidelity, the reference set, and the evaluation of a run."""
