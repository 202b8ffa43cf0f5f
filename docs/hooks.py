"""Links that leave the manual lead to files of a checkout; its web pages keep their names."""

import re


def on_page_markdown(markdown: str, **_: object) -> str:
    """What mkdocs calls for each page."""
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"`\1`", markdown)
