"""What mkdocs calls: the reference is written, pages beside what they describe join the manual, and links follow."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from reference import pages

ROOT = Path(__file__).parents[1]
JOINED = {"infra.md": "infra/README.md"}  # page of the manual: where it lies in a checkout
OUTWARD = re.compile(r"\[([^\]]+)\]\((\.\./[^)#]+)(#[^)]*)?\)")
RELATIVE = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The manual's own files, the reference's and those that join."""
    for place, text in pages().items():
        files.append(File.generated(config, place, content=text))
    for place, source in JOINED.items():
        files.append(File.generated(config, place, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """A page whose links lead to pages of the manual, or become names of files in a checkout."""
    place = page.file.src_uri
    source = JOINED.get(place, f"docs/{place}")

    def led(link: re.Match[str]) -> str:
        text, target, anchor = link.groups(default="")
        at = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        joined = next((page for page, lies in JOINED.items() if lies == at), at.removeprefix("docs/"))
        if joined == at:
            return f"`{text}`"
        return f"[{text}]({posixpath.relpath(joined, posixpath.dirname(place))}{anchor})"

    return (RELATIVE if place in JOINED else OUTWARD).sub(led, markdown)
