"""`cdrl config show|check|list`."""

from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from cdrl import config as configuration

__all__ = ["ConfigArgument", "SetOption", "app"]

app = typer.Typer(help="Look at presets and check configurations.", no_args_is_help=True)

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A preset's name or a YAML file.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Override one setting; may be repeated.")
]


@app.command("list")
def list_presets() -> None:
    """List the presets."""
    table = Table("preset", "what it is", box=None)
    for name, text in configuration.presets().items():
        table.add_row(name, text)
    Console().print(table)


@app.command()
def show(
    source: ConfigArgument,
    overrides: SetOption = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="FILE", help="Write it there; `cdrl train FILE` takes it.")
    ] = None,
) -> None:
    """Print the resolved configuration as YAML."""
    config = configuration.load(source, overrides or ())
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    if to is not None:
        from cdrl import storage

        storage.write_bytes(to, text.encode())
        Console().print(f"{to}: config digest {config.digest[:12]}", highlight=False, soft_wrap=True, markup=False)
        return
    console = Console()
    console.print(Syntax(text, "yaml", background_color="default") if console.is_terminal else text, soft_wrap=True)


@app.command()
def check(source: ConfigArgument, overrides: SetOption = None) -> None:
    """Check a configuration and name the run that it would make."""
    from cdrl.build import check_buildable

    config = configuration.load(source, overrides or ())
    check_buildable(config)
    Console().print(f"valid: run {config.run_id}, config digest {config.digest[:12]}", highlight=False)
