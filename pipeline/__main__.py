"""`python -m pipeline compile [--out pipeline.yaml]`."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

OUT = Path("pipeline.yaml")

app = typer.Typer(
    help="The Kubeflow pipeline of cdrl.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


@app.callback()
def _pipeline() -> None:
    """Keep `compile` a command of its own: typer would melt a single one into the root."""


@app.command("compile")
def compile_command(
    out: Annotated[Path, typer.Option(metavar="YAML", dir_okay=False, help="Where to.")] = OUT,
) -> None:
    """Write the pipeline as YAML, with the image that CDRL_IMAGE names."""
    from components.image import IMAGE
    from pipeline.compile import compile_pipeline

    if out.suffix not in (".yaml", ".yml") or not out.parent.is_dir():
        raise typer.BadParameter(f"{out}: expected a .yaml file in a folder that exists", param_hint="--out")
    compile_pipeline(out)
    typer.echo(f"{out}: image {IMAGE}")


if __name__ == "__main__":
    app(prog_name="python -m pipeline")
