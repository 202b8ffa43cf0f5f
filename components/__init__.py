"""Kubeflow components: each names one command of the factory and says what goes in and what comes out."""
