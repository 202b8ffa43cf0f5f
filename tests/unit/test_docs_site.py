"""The manual as a site: built strictly, whole, without a dead link, and asking no other server."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import typer

from cdrl import config as configuration
from cdrl.cli import groups
from tests.commands import parse

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "infra" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LOADING = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}
FENCE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Page(HTMLParser):
    """What a page loads, where it links to and the places in it that can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.text = path, path.read_text()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given["id"]} if "id" in given else set()
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif LOADING.get(tag, "") in given and given.get("rel") != "canonical":
            self.loaded.append(given[LOADING[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("docs") / "site"
    built = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)]
    # not --quiet: warnings that are not logged are not counted either
    done = subprocess.run(built, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def commands() -> Iterator[list[str]]:
    """Every command of the real command line, as words."""

    def walk(command: Any, words: list[str]) -> Iterator[list[str]]:
        for name, inner in getattr(command, "commands", {}).items():
            if not inner.hidden:
                yield [*words, name]
                yield from walk(inner, [*words, name])

    app = typer.Typer()
    groups.attach(app)
    yield from walk(typer.main.get_command(app), ["cdrl"])


def keys(tree: Any, path: str = "") -> Iterator[str]:
    for name, value in tree.items():
        yield from keys(value, f"{path}{name}.") if isinstance(value, dict) else (path + name,)


def test_every_command_is_in_the_reference(site: Path) -> None:
    text = (site / "reference" / "commands" / "index.html").read_text()
    expected = [" ".join(words) for words in commands()]
    assert len(expected) > 30
    assert [name for name in expected if f"<code>{name}</code>" not in text] == []


def test_every_option_is_in_the_reference(site: Path) -> None:
    text = (site / "reference" / "commands" / "index.html").read_text()
    for option in ("--step-multiplier", "--trace", "--expect", "--patience", "MLFLOW_TRACKING_URI"):
        assert option in text


def test_every_setting_is_in_the_reference_with_its_default_and_range(site: Path) -> None:
    text = (site / "reference" / "configuration" / "index.html").read_text()
    expected = list(keys(configuration.load("cifar10").model_dump(mode="json")))
    assert len(expected) > 80
    assert [key for key in expected if f"<td><code>{key}</code></td>" not in text] == []
    row = r"<code>training.label_dropout</code></td>\s*<td><code>0.1</code></td>\s*<td>number at least 0, below 1</td>"
    assert re.search(row, text)


def test_every_preset_is_in_the_reference(site: Path) -> None:
    text = (site / "reference" / "presets" / "index.html").read_text()
    assert [name for name in configuration.presets() if f'id="{name}"' not in text] == []


def test_pages_load_nothing_from_elsewhere(pages: dict[Path, Page]) -> None:
    assert any(page.loaded for page in pages.values())
    elsewhere = [(path.name, url) for path, page in pages.items() for url in page.loaded if urlsplit(url).netloc]
    assert elsewhere == []


def test_styles_load_nothing_from_elsewhere(site: Path) -> None:
    styles = [path.read_text() for path in site.rglob("*.css")]
    assert styles and not [text for text in styles if re.search(r"(@import|url\()\s*['\"]?(https?:)?//", text)]


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    dead, followed = [], 0
    for path, page in pages.items():
        for link in (*page.links, *page.loaded):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            base = site if parts.path.startswith("/") else path.parent  # 404.html is shown at any depth
            target = (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            known = not parts.fragment or target not in pages or parts.fragment in pages[target].ids
            dead += [] if target.is_file() and known else [(path.name, link)]
            followed += 1
    assert followed > 500 and dead == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_of_a_page_are_commands(page: Path) -> None:
    blocks = [block.replace("\\\n", " ") for block in FENCE.findall(page.read_text())]
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("cdrl ")]
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        parameters = parse(words)
        if words[0] in ("train", "schedule", "config") and parameters.get("source") in configuration.presets():
            configuration.load(parameters["source"], parameters["overrides"] or ())


@pytest.mark.parametrize("words", [["registry", "promot", "digits"], ["sample", "digits", "--lable"], ["evaluate"]])
def test_a_wrong_command_would_be_seen(words: list[str]) -> None:
    with pytest.raises(Exception, match="promot|lable|run"):
        parse(words)
