"""What holds for every file: one version, exact pins, small files, nothing unsafe, a light command line."""

import ast
import configparser
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import cdrl
from components.image import IMAGE

ROOT = Path(__file__).parents[2]
PACKAGES = ("cdrl", "components", "pipeline")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
UNPICKLERS = ("cloudpickle", "dill", "joblib", "shelve")
SHIPPED = SOURCES + sorted((ROOT / "tests").rglob("*.py"))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def requirements() -> Iterator[Requirement]:
    parser = settings()
    for lines in (parser["options"]["install_requires"], *dict(parser["options.extras_require"]).values()):
        yield from (Requirement(line) for line in lines.split("\n") if line)


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_one_version_everywhere() -> None:
    assert settings()["metadata"]["version"] == "attr: cdrl.__version__"
    newest = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert newest == cdrl.__version__
    assert IMAGE == f"cdrl:{cdrl.__version__}"


@pytest.mark.parametrize("requirement", sorted({str(each) for each in requirements()}))
def test_every_dependency_is_pinned_within_its_bounds(requirement: str) -> None:
    needed = Requirement(requirement)
    version = pins()[needed.name.lower().replace("_", "-")]
    assert needed.specifier.contains(version)


def test_pins_are_exact_and_named_once() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.+]*", line) for line in lines)
    assert lines == sorted(set(lines)) and len(pins()) == len(lines)
    assert (pins()["torch"], pins()["torchvision"]) == ("2.15.0", "0.29.2"), "a pair that was tried together"


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_a_file_is_short_and_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    assert ast.get_docstring(ast.parse(text))


def unsafe(source: str) -> list[str]:
    """Imports and calls that can run what a file holds. Of pickle only the name of its error is allowed."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                aliased = [each.name for each in names if each.name == "pickle" and each.asname]
                found += aliased + [each.name for each in names if each.name in UNPICKLERS]
            case ast.ImportFrom(module=module):
                found += [module] if module in (*UNPICKLERS, "pickle") else []
            case ast.Attribute(value=ast.Name(id="pickle"), attr=attribute):
                found += [attribute] if attribute != "UnpicklingError" else []
            case ast.Call():
                call = ast.unparse(node.func)
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                rules = (
                    call == "torch.load" and keywords.get("weights_only") != "True",
                    call == "yaml.load" and "Safe" not in ast.unparse(node),
                    call in ("np.load", "numpy.load") and keywords.get("allow_pickle", "False") != "False",
                    call in ("eval", "exec", "os.system"),
                    keywords.get("shell") == "True",
                )
                found += [call] if any(rules) else []
    return found


@pytest.mark.parametrize("path", SHIPPED, ids=named)
def test_nothing_unsafe_is_called(path: Path) -> None:
    assert unsafe(path.read_text()) == []


@pytest.mark.parametrize(
    "planted",
    [
        "pickle.loads(data)",
        "import pickle as fast",
        "from pickle import loads",
        "from joblib import load",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "yaml.load(text, Loader=yaml.Loader)",
        "np.load(f, allow_pickle=True)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_search_finds_what_is_planted(planted: str) -> None:
    assert len(unsafe(planted)) == 1


def test_the_command_line_starts_without_heavy_libraries() -> None:
    heavy = ("torch", "ray", "mlflow", "boto3", "pyarrow", "sklearn", "matplotlib", "pandas", "kfp")
    code = (
        "import sys, typer; from cdrl.cli import groups; groups.attach(typer.Typer());"
        f"print(*[name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("module", ["cdrl.method", "cdrl.model", "cdrl.training.loop"])
def test_the_method_and_the_loop_need_no_platform(module: str) -> None:
    absent = dict.fromkeys(("ray", "mlflow", "kfp", "boto3"))
    code = f"import sys; sys.modules.update({absent}); import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
