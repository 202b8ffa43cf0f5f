"""Step: scores and report on Kubeflow's own pages."""

from kfp import dsl

from components.image import IMAGE

__all__ = ["report"]


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(card: str, root: str, scores: dsl.Output[dsl.Metrics], page: dsl.Output[dsl.HTML]) -> None:
    """Hand the figures and the report of an evaluation to Kubeflow.

    The one step that is Python: only Kubeflow's own launcher knows where metrics go.

    Args:
        card: name of the run, or the file of a score card.
        root: folder of the run's record.
        scores: every figure of the card.
        page: the report, one HTML file.
    """
    import json
    import subprocess

    command = ["cdrl", "report", card, "--root", root, "--scores", scores.path, "--page", page.path]
    subprocess.run(command, check=True)
    with open(scores.path) as file:
        for name, value in json.load(file).items():
            scores.log_metric(name, value)
