"""Writes the man pages, the commented settings and the shells' completions.

    python packaging/documents DIRECTORY

Each says what the code says: the parser of vmagentd, the commands of vmagentctl, the tables of the
settings with their comments. What they leave open, how to run it all, is written here and in
`manual.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import completion
import manual
import settings
from commands import commands


def main(directory: Path) -> None:
    """Write all documents into *directory*."""
    directory.mkdir(parents=True, exist_ok=True)
    tables = settings.tables()
    documents = {
        "vmagentd.toml": settings.file(tables),
        "vmagentd.8": manual.vmagentd(),
        "vmagentctl.1": manual.vmagentctl(commands()),
        "vmagentd.toml.5": manual.settings_page(tables),
        "vmagentctl.bash": completion.bash(commands()),
        "vmagentctl.zsh": completion.zsh(commands()),
        "vmagentctl.fish": completion.fish(commands()),
    }
    for name, text in documents.items():
        (directory / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
