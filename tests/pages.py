"""Pages of the documentation: their blocks of code, and the files that docs/tables.md names."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.datasets import load_iris


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
    iris = load_iris(as_frame=True)
    names = np.array(["setosa", "versicolor", "virginica"])
    frame = iris.frame.assign(species=names[iris.target]).drop(columns="target")
    frame.to_csv(folder / "iris.csv", index=False)
    frame.drop(columns="species")[::-10].to_csv(folder / "new.csv", index=False)
    return frame


def write_passengers(folder: Path) -> pd.DataFrame:
    """Write passengers.csv, an invented table of 600 passengers of four ships; return it.

    The log-odds of survival are 1.5 for women over men, -1 and -2 for the second and third class
    over the first, and -0.03 for each year of age.
    """
    random = np.random.default_rng(0)
    n = 600
    sex = random.choice(["female", "male"], n, p=[0.4, 0.6])
    cabin = random.choice(["first", "second", "third"], n, p=[0.25, 0.25, 0.5])
    age = np.round(random.uniform(1, 70, n), 1)
    fare = np.round(random.lognormal(3, 0.5, n), 2)
    logit = 1.3 + 1.5 * (sex == "female") - 0.03 * age
    logit = logit - 1.0 * (cabin == "second") - 2.0 * (cabin == "third")
    survived = np.where(random.random(n) < 1 / (1 + np.exp(-logit)), "yes", "no")
    frame = pd.DataFrame(
        {
            "sex": sex,
            "cabin": cabin,
            "age": age,
            "fare": fare,
            "ship": random.choice(["Aurora", "Borealis", "Castor", "Dione"], n),
            "survived": survived,
        }
    )
    frame.to_csv(folder / "passengers.csv", index=False)
    return frame
