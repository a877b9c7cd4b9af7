"""Put the pages and files at the top of the repository into the site, and turn links to them accordingly."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# README.md would be the front page, which is index.md.
PAGES = {"README.md": "start.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md",
         "SECURITY.md": "SECURITY.md"}  # fmt: skip
FILES = ("LICENSE", "examples/algorithm.py", "examples/train_and_serve.sh", "heads/train.sh")


def on_files(files: Files, config: Any) -> Files:
    """Add what lies outside of docs/."""
    for name, place in [*PAGES.items(), *zip(FILES, FILES, strict=True)]:
        files.append(File.generated(config, place, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links between docs/ and the top of the repository into links of the site."""
    above = "docs/" if page.file.src_uri in PAGES.values() else r"\.\./"
    return re.sub(rf"\]\({above}([^)#]*)", lambda link: f"]({PAGES.get(link[1], link[1])}", markdown)
