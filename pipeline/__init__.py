"""The graphs of Kubeflow, which a laptop runs as well: `python -m pipeline compile|run|submit|diff`."""
