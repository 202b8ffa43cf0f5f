"""Where a command runs when not here: a job of a Ray cluster that is there, or a KubeRay job with one of its own."""
