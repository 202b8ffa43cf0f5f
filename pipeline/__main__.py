"""`python -m pipeline compile|run|submit|diff`."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from cdrl.errors import CdrlError, ConfigError
from pipeline import graph, parameters
from pipeline.compile import COMMITTED, compile_pipeline, documents
from pipeline.define import PIPELINES
from pipeline.difference import difference, read
from pipeline.pod import ROOT

__all__ = ["app", "main"]

Which = StrEnum("Which", list(PIPELINES))  # type: ignore[misc]  # the graphs that there are

app = typer.Typer(
    help="The Kubeflow pipelines of cdrl.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)

WhichArgument = Annotated[Which, typer.Argument(metavar="|".join(PIPELINES), help="Which graph.")]
ConfigOption = Annotated[str, typer.Option(metavar="CONFIG", help="A preset's name or a YAML file.")]
RunOption = Annotated[str | None, typer.Option(metavar="NAME", help="The run; default: model and parameters' digest.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the pipeline; may be repeated.")
]
WHOLE = Which["cdrl"]
OUT = Path("pipeline.yaml")


@app.command("compile")
def compile_command(
    which: WhichArgument = WHOLE,
    out: Annotated[Path, typer.Option(metavar="YAML", help="Where to.")] = OUT,
    every: Annotated[bool, typer.Option("--all", help="All graphs, into the folder that is committed.")] = False,
) -> None:
    """Write a pipeline as YAML, with the image that CDRL_IMAGE names."""
    image = _image()
    if out.suffix not in (".yaml", ".yml") or not out.parent.is_dir():
        raise ConfigError(f"--out {out}: expected a .yaml file in a folder that exists")
    for name, path in {each: COMMITTED / f"{each}.yaml" for each in PIPELINES}.items() if every else ((which, out),):
        compile_pipeline(name, path)
        Console(soft_wrap=True).print(f"{path}: image {image}", highlight=False, markup=False)


@app.command()
def run(
    which: WhichArgument = WHOLE,
    config: ConfigOption = "digits",
    run: RunOption = None,
    root: Annotated[str, typer.Option("--root", metavar="FOLDER", help="The folder of runs.")] = "runs",
    address: Annotated[str, typer.Option(metavar="WHERE", help="local, http://HOST:8265 or kuberay.")] = "local",
    overrides: SetOption = None,
) -> None:
    """Run a graph on this machine, or on one Ray cluster from here; the same command goes on after any end."""
    from pipeline.progress import showing
    from pipeline.run import Execution
    from pipeline.state import opened

    spec = documents(which)[0]
    asked = _asked(run, overrides, options=("config", "run", "root", "address"))
    usual = _from_config(config, asked, f"{root}/data")
    usual |= {"root": root, "address": address, "storage": "", "tracking": ""}
    chosen = parameters.resolve(spec, asked, usual)
    name = chosen.get("run") or f"{which}-{chosen['model']}-{chosen['seed']}"
    folder = Path(chosen["root"]) / "pipelines" / name
    with opened(folder, str(which), chosen) as state, showing(list(graph.leaves(spec)), name) as tell:
        state.end_orphan(lambda text: tell("", text))
        Execution(spec, state, folder, tell).run()


@app.command()
def submit(
    which: WhichArgument = WHOLE,
    config: ConfigOption = "digits",
    run: RunOption = None,
    experiment: Annotated[str, typer.Option(metavar="NAME", help="Kubeflow's folder of runs.")] = "cdrl",
    namespace: Annotated[str | None, typer.Option(metavar="NAME", help="In a Kubeflow of many users.")] = None,
    overrides: SetOption = None,
) -> None:
    """Send a graph to Kubeflow Pipelines at CDRL_KUBEFLOW_URL, with the token in CDRL_KUBEFLOW_TOKEN or ..._FILE."""
    import tempfile

    from pipeline.endpoint import Endpoint

    image = _image(needs_digest=True)
    asked = _asked(run, overrides, options=("config", "run"))
    usual = _from_config(config, asked, "s3://cdrl/data")
    chosen = parameters.resolve(documents(which)[0], asked, usual)
    if not Path(chosen["root"]).is_relative_to(ROOT):
        raise ConfigError(f"parameter root: expected a folder below {ROOT}, which pods share, got {chosen['root']!r}")
    name = chosen.get("run") or f"{which}-{chosen['model']}-{chosen['seed']}"
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch, "pipeline.yaml")
        compile_pipeline(which, package)
        page = Endpoint().submit(package, chosen, name, experiment, namespace)
    Console(soft_wrap=True).print(f"submitted: {name}, image {image}: {page}", highlight=False, markup=False)


@app.command()
def diff(
    a: Annotated[Path | None, typer.Argument(metavar="[A.yaml]", help="Default: the committed files.")] = None,
    b: Annotated[Path | None, typer.Argument(metavar="[B.yaml]", help="Default: what the code makes now.")] = None,
    which: Annotated[Which, typer.Option(help="Which graph, where the code or Kubeflow is asked.")] = WHOLE,
    on: Annotated[str | None, typer.Option(metavar="RUN", help="Of this run on Kubeflow against the code.")] = None,
) -> None:
    """Say how two compiled pipelines differ: files, the code, a run on Kubeflow. Exit code 1: they do."""
    from pipeline.endpoint import Endpoint

    if on is not None and a is not None:
        raise ConfigError("--on RUN compares with the code; leave out the files")
    pairs: list[tuple[str, Any, str, Any]]
    if on is not None:
        there = Endpoint().spec_of(on)
        pairs = [(f"run {on}", there, "the code", documents(which)[: len(there)])]
    elif a is not None:
        pairs = [(str(a), read(a), *(("the code", documents(which)) if b is None else (str(b), read(b))))]
    else:
        paths = {name: COMMITTED / f"{name}.yaml" for name in PIPELINES}
        pairs = [(path.name, read(path), "the code", documents(name)) for name, path in paths.items()]
    console, is_same = Console(soft_wrap=True, highlight=False), True
    for left, ours, right, theirs in pairs:
        lines = list(difference(ours, theirs, (left, right)))
        is_same = is_same and not lines
        for line in lines or [f"{left} and {right}: the same"]:
            console.print(escape(line), style={"+": "green", "-": "red"}.get(line[:1]))
    raise typer.Exit(0 if is_same else 1)


def _image(needs_digest: bool = False) -> str:
    from components.image import IMAGE, ImageError, checked_image

    try:
        checked_image(IMAGE, needs_digest=needs_digest)
    except ImageError as error:
        raise ConfigError(str(error)) from None
    return IMAGE


def _asked(run: str | None, overrides: list[str] | None, options: tuple[str, ...]) -> dict[str, str]:
    asked = parameters.split(overrides or [])
    for name in options:
        if name in asked:
            raise ConfigError(f"--set {name}=...: there is --{name}")
    return asked if run is None else {**asked, "run": run}


def _from_config(config: str, asked: dict[str, str], place: str) -> dict[str, Any]:
    from cdrl import config as configuration

    return parameters.from_config(configuration.load(config, []), config, asked.get("source"), place)


def main() -> None:
    """One line on standard error and exit code 2 for the user's mistakes, 1 for failures."""
    try:
        app(prog_name="python -m pipeline")
    except CdrlError as error:
        line = escape(" ".join(str(error).split()))
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {line}", highlight=False)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
