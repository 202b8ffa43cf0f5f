"""What mkdocs calls: the reference is written, and links that leave the manual become names of files in a checkout."""

import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from reference import pages


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The manual's files and the reference's."""
    for place, text in pages().items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """A page whose links out of the manual keep only their names."""
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"`\1`", markdown)
