"""The manual's page on the method: every line it quotes, every picture and every command is there."""

import re
import shlex
from pathlib import Path

import pytest

from cdrl import config as configuration
from tests.commands import parse

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGE = (DOCS / "method.md").read_text()
MAP = re.findall(r"^\| ([^|]+) \| `([^`|]+)` \| \[([^\]]+)\]\(\.\./([^)]+)\) \|$", PAGE, re.MULTILINE)
COMMANDS = [
    line
    for block in re.findall(r"^```console\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
] + re.findall(r"`(cdrl [^`]+)`", PAGE)
LARGEST = 300_000  # bytes of a picture


def lines_of(path: str) -> list[str]:
    return [line.strip() for line in (ROOT / path).read_text().splitlines()]


def test_every_row_of_the_map_was_read() -> None:
    rows = PAGE.split("## Every equation and its line")[1].count("\n| ") - 1  # but the titles
    assert rows == len(MAP) > 40


@pytest.mark.parametrize(("line", "path"), [(line, path) for _, line, _, path in MAP])
def test_a_quoted_line_stands_once_in_its_file(line: str, path: str) -> None:
    assert lines_of(path).count(line) == 1


def test_the_map_names_each_equation_once_and_its_file() -> None:
    names = [name for name, _, _, _ in MAP]
    assert len(names) == len(set(names))
    assert all(path == f"cdrl/method/{shown}" for _, _, shown, path in MAP)


def test_the_chapters_with_mathematics_are_in_the_map() -> None:
    mapped = {Path(path).stem for _, _, _, path in MAP}
    chapters = {path.stem for path in (ROOT / "cdrl" / "method").glob("*.py")}
    plumbing = {"__init__", "descent", "formulation", "rng", "trace", "tree"}
    assert chapters - plumbing <= mapped


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", PAGE)
    assert targets and [target for target in targets if not (DOCS / target).exists()] == []


def test_pictures_are_small_and_all_of_them_shown() -> None:
    pictures = list((DOCS / "pictures").iterdir())
    text = "\n".join(page.read_text() for page in DOCS.glob("*.md"))
    shown = re.findall(r"^!\[[^\]]+\]\(pictures/([^)]+)\)$", text, re.MULTILINE)
    assert sorted(set(shown)) == sorted(picture.name for picture in pictures)
    assert {picture.name: size for picture in pictures if (size := picture.stat().st_size) > LARGEST} == {}


def test_every_picture_has_its_command() -> None:
    made = {str(parse(shlex.split(line)[1:]).get("picture")) for line in COMMANDS}
    shown = re.findall(r"pictures/([^)]+)\)", PAGE)
    assert {name for name in shown if name not in made} == set()


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_is_one(line: str) -> None:
    program, *arguments = shlex.split(line)
    assert program == "cdrl"
    parameters = parse(arguments)
    if arguments[0] in ("train", "schedule", "config"):
        assert configuration.load(parameters["source"], parameters.get("overrides") or ())
