"""Pages of the documentation: their blocks, and the tables that their first blocks write."""

import contextlib
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pandas as pd

DOCS = Path(__file__).parents[1] / "docs"


class Block(NamedTuple):
    """A block of code in a page."""

    language: str
    code: str
    not_run: str | None  # the reason, from the comment before the block

    def commands(self) -> list[list[str]]:
        """The commands of the block, as lists of their words."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [shlex.split(line, comments=True) for line in lines]


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    found = re.findall(
        r"^(?:<!-- not run: ([^\n]*) -->\n)?```(\w+)\n(.*?)^```$", page.read_text(), re.M | re.S
    )
    return [Block(language, code, reason or None) for reason, language, code in found]


def write_iris(folder: Path) -> pd.DataFrame:
    """Write iris.csv, with the species, and new.csv, 15 of its rows without; return the first."""
    return made_by("tables.md", folder, "iris.csv")


def write_passengers(folder: Path) -> pd.DataFrame:
    """Write passengers.csv, an invented table of 600 passengers of four ships; return it."""
    return made_by("inference.md", folder, "passengers.csv")


def made_by(page: str, folder: Path, table: str) -> pd.DataFrame:
    """Run the first block of a page in a folder, where it writes tables; return one of them."""
    path = DOCS / page
    with contextlib.chdir(folder):
        exec(compile(blocks(path)[0].code, str(path), "exec"), {})
    return pd.read_csv(folder / table)
