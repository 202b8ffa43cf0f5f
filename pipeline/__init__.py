"""The Kubeflow graph: exactly the steps of `make demo`, each in a pod of its own."""
