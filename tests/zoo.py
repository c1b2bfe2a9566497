"""Tables as people have them: made here, each with a pattern that a model can find.

``ZOO`` has for each file what makes it, the column to predict, and how ``fl-kit check`` is asked.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fl_app.seeding import generator

Frame = pd.DataFrame


@dataclass(frozen=True)
class Animal:
    """One file.

    Parameters
    ----------
    make : callable
        Returns the table.
    target : str or tuple of str
        What is predicted.
    name : str
        The file's name, whose ending says what it is.
    csv : mapping
        How it is written, see ``pandas.DataFrame.to_csv``.
    asked : mapping
        Further arguments of the check.
    named : tuple of str
        Columns that may be lost if they are named.
    says : tuple of str
        What the check must say.
    loses : bool
        Whether more than a tenth of the rows may be lost if their number is said.
    """

    make: Callable[[], Frame]
    target: str | tuple[str, ...] = "y"
    name: str = "t.csv"
    csv: Mapping[str, Any] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)
    named: tuple[str, ...] = ()
    says: tuple[str, ...] = ()
    loses: bool = False

    def write(self, folder: Path) -> Path:
        """Write the file and return its path."""
        path, frame = folder / self.name, self.make()
        if path.suffix == ".parquet":
            frame.to_parquet(path)
            return path
        text = frame.to_csv(**{"index": False, **self.csv})
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(text.encode()))
        else:
            path.write_text(text)
        return path


def numbers(n: int = 300, labels: tuple[object, ...] = (0, 1), features: int = 3) -> Frame:
    """Return n rows of features x1 ... and a label y that depends on them."""
    rng = generator(0, "zoo")
    x = rng.normal(size=(n, features))
    value = x[:, 0] + 0.5 * x[:, 1] + 0.3 * rng.normal(size=n)
    place = np.searchsorted(np.quantile(value, np.arange(1, len(labels)) / len(labels)), value)
    frame = Frame(x.round(3), columns=[f"x{j + 1}" for j in range(features)])
    return frame.assign(y=[labels[k] for k in place])


def prices(n: int = 300, scale: float = 1.0) -> Frame:
    """Return n rows with a number y that depends on the features."""
    frame = numbers(n)
    rng = generator(0, "prices")
    y = 40 + 12 * frame.x1 - 6 * frame.x2 + rng.normal(size=n)
    return frame.assign(y=(y * scale).round(2))


def spelt(frame: Frame, names: str | list[str], how: Callable[[float], str]) -> Frame:
    """Return the table with some columns as texts."""
    names = [names] if isinstance(names, str) else names
    return frame.assign(**{name: frame[name].map(how) for name in names})


def euro(value: float) -> str:
    """Return 1.234,50."""
    return f"{value:,.2f}".translate(str.maketrans(",.", ".,"))


def with_column(frame: Frame, **columns: Any) -> Frame:
    """Return the table with columns in front."""
    more = Frame({name: list(values) for name, values in columns.items()})
    return pd.concat([more, frame], axis=1)


def some_missing(frame: Frame, shares: Mapping[str, float]) -> Frame:
    """Return the table with cells missing in some columns."""
    rng = generator(0, "missing")
    gaps = {name: rng.random(len(frame)) < share for name, share in shares.items()}
    return frame.assign(
        **{name: frame[name].astype(object).where(~gap) for name, gap in gaps.items()}
    )


def towns(n: int, number: int, word: str = "town") -> list[str]:
    """Return n cells with a number of levels."""
    return [f"{word} {k}" for k in generator(0, word).integers(number, size=n)]


def days(n: int) -> list[str]:
    """Return n dates as they are written in Germany."""
    return [day.strftime("%d.%m.%Y") for day in pd.date_range("2020-01-30", periods=n)]


def rare(n: int = 1000, share: float = 0.03) -> Frame:
    """Return a table with few rows of class 1."""
    frame = numbers(n)
    value = frame.x1 + 0.5 * frame.x2
    return frame.assign(y=(value > np.quantile(value, 1 - share)).astype(int))


def at_sites(sizes: tuple[int, ...] = (120, 90, 40, 30, 20, 1)) -> Frame:
    """Return a table by hospital."""
    names = np.repeat([f"clinic {k}" for k in range(len(sizes))], sizes)
    return with_column(numbers(sum(sizes), ("ill", "well")), hospital=names)


def by_words(n: int) -> Frame:
    """Return a table whose columns are mostly texts that tell the class."""
    frame = numbers(n, ("no", "yes"))
    rng = generator(0, "words")
    noisy = np.where(rng.random(n) < 0.1, 1 - (frame.x1 > 0), frame.x1 > 0)
    pain = np.where(noisy, "typical", "none")
    return frame[["x3", "y"]].assign(pain=pain, colour=rng.choice(["red", "green", "blue"], n))


def codes(n: int = 300) -> Frame:
    """Return a table with codes that begin with a zero."""
    frame = numbers(n)
    return frame.assign(zip=["01234" if x > 0 else "09876" for x in frame.x1])


def cased(n: int = 300) -> Frame:
    """Return a table with a level in two spellings."""
    frame = numbers(n)
    return frame.assign(state=["Sick " if k % 3 else "sick" for k in range(n)])


ODD = ("a=b", "x,y", "it's", 'the "q"', "back\\slash\\", "${x}", "[l]", "{m}", "~+:$%", "null")
GERMAN: Mapping[str, Any] = {"sep": ";", "decimal": ","}
ZOO: Mapping[str, Animal] = {
    "numbers and a class": Animal(numbers),
    "a number to predict": Animal(prices),
    "large and small units": Animal(
        lambda: prices(scale=1e4).assign(x1=lambda f: f.x1 * 1e9, x2=lambda f: f.x2 * 1e-6)
    ),
    "semicolons, 1.234,50 and dates": Animal(
        lambda: with_column(
            spelt(prices(scale=50), ["y", "x1"], euro).rename(columns={"y": "Umsatz"}),
            Datum=days(300),
            Ort=towns(300, 4),
        ),
        "Umsatz",
        csv=GERMAN,
        named=("Datum",),
        says=("dataset.decimal=comma", "dataset.thousands=dot", "Datum (dates)"),
    ),
    "semicolons and decimal commas": Animal(prices, csv=GERMAN, says=("dataset.decimal=comma",)),
    "1,234 in quotes": Animal(
        lambda: spelt(prices(scale=50), "y", lambda v: f"{v:,.0f}"),
        says=("dataset.thousands=comma",),
    ),
    "1'234.5 between tabs": Animal(
        lambda: spelt(prices(scale=50), "y", lambda v: f"{v:,.1f}".replace(",", "'")),
        name="t.tsv",
        csv={"sep": "\t"},
        says=("dataset.thousands=apostrophe",),
    ),
    "1 234,5 between pipes": Animal(
        lambda: spelt(prices(scale=50), "y", lambda v: euro(v).replace(".", " ")),
        csv={"sep": "|"},
        says=("dataset.decimal=comma dataset.thousands=space",),
    ),
    "packed": Animal(prices, name="t.csv.gz"),
    "an index in Parquet": Animal(
        lambda: with_column(numbers(), key=range(300)).set_index("x3"), name="t.parquet"
    ),
    "row numbers without a name": Animal(numbers, csv={"index": True}),
    "ids, names and dates": Animal(
        lambda: with_column(
            numbers(400),
            PassengerId=range(1, 401),
            Name=[f"passenger {k}" for k in range(400)],
            seen=days(400),
        ),
        named=("PassengerId", "Name", "seen"),
        says=("PassengerId (an identifier)", "seen (dates)", "Name (texts of fewer than 5 rows"),
    ),
    "ids of another order": Animal(
        lambda: with_column(numbers(), patient_id=generator(0, "ids").permutation(300) + 7000),
        named=("patient_id",),
        says=("patient_id (an identifier)",),
    ),
    "numbers that count up": Animal(
        lambda: with_column(numbers(), Serial=range(1000, 1300)),
        says=("another whole number in each row: Serial",),
    ),
    "1310 names": Animal(
        lambda: with_column(numbers(1310), who=[f"{k} Smith" for k in range(1310)]),
        named=("who",),
        says=("who (texts of fewer than 5 rows each)",),
    ),
    "50 levels": Animal(
        lambda: with_column(numbers(1500), town=towns(1500, 50)),
        named=("town",),
        says=("town (50 levels, more than 20)",),
    ),
    "? among numbers": Animal(
        lambda: spelt(numbers(), "x1", lambda v: "?" if v > 1.8 else f"{v}"),
        says=("read as missing: '?'", "dataset.missing=mean"),
    ),
    "-999 and 9999 among numbers": Animal(
        lambda: numbers().assign(
            x1=lambda f: f.x1.where(f.x1 < 1.5, -999), x3=lambda f: f.x3.where(f.x3 < 1.8, 9999)
        ),
        says=(
            "far from all other numbers, and several times: -999 (x1), 9999 (x3)",
            "read as missing: '-999'",
            "dataset.missing_values=[-999,9999]",
            "dataset.missing=mean",
        ),
    ),
    "9, 99 and 999 that are values": Animal(
        lambda: numbers(1000).assign(
            percent=[k % 101 for k in range(1000)],
            price=[(9, 49, 99, 249, 499, 999)[k % 6] for k in range(1000)],
            change=[k % 21 - 10 for k in range(1000)],
        ),
    ),
    "words among numbers": Animal(
        lambda: spelt(numbers(), "x2", lambda v: "unknown" if v > 1.5 else f"{v}"),
        says=("texts among numbers, below read as missing cells: 'unknown' (x2)",),
    ),
    "a word that is a level elsewhere": Animal(
        lambda: spelt(
            with_column(numbers(), risk=["high" if k % 2 else "low" for k in range(300)]),
            "x3",
            lambda v: "high" if v > 1.5 else f"{v}",
        ),
        named=("x3",),
        says=("left out below, as texts stand among their numbers: x3 (1 different)",),
    ),
    "a column that is mostly empty": Animal(
        lambda: some_missing(numbers(), {"x3": 0.81, "x2": 0.05}),
        says=("mostly empty: x3 (8", "dataset.missing=mean"),
    ),
    "and a target that is not everywhere": Animal(
        lambda: some_missing(numbers(400), {"x3": 0.81, "x2": 0.04, "y": 0.03}),
        says=("mostly empty: x3 (8", "dataset.missing=mean: 391 of 400 rows"),
    ),
    "a column without a value": Animal(
        lambda: numbers().assign(x9=np.nan), named=("x9",), says=("x9 (no value)",)
    ),
    "a class called None": Animal(
        lambda: numbers(labels=("None", "some")), says=("dataset.classes names",)
    ),
    "sites": Animal(
        at_sites,
        asked={"key": "hospital"},
        says=("6 sites, rows of each: clinic 0: 120", "num_clients=6"),
    ),
    "features that were named": Animal(
        lambda: with_column(numbers(), town=towns(300, 3)),
        asked={"features": ("x1", "x2")},
        named=("x3", "town"),
        says=("dataset.features=[x1,x2]",),
    ),
    "3 % of a class": Animal(rare, says=("rare classes of y: 1 (3.0%)", "dataset.classes=[0,1]")),
    "40 rows of 3 classes": Animal(
        lambda: numbers(40, ("a", "b", "c")), says=("num_clients=3", "dataset.classes=[a,b,c]")
    ),
    "60 rows of words": Animal(lambda: by_words(60), says=("num_clients=4",)),
    "12 rows": Animal(lambda: numbers(12), says=("num_clients=1",)),
    "80 rows of 60 columns": Animal(lambda: numbers(80, features=60), says=("num_clients=6",)),
    "digits as names": Animal(
        lambda: numbers().rename(columns={"x1": "1", "x2": "2020", "x3": "3rd", "y": "0"}), "0"
    ),
    "odd names": Animal(
        lambda: numbers(features=len(ODD) - 1).set_axis([*ODD], axis=1),
        ODD[-1],
        asked={"features": ODD[:-1]},
    ),
    "an odd target": Animal(lambda: numbers().rename(columns={"y": "${y}, \\"}), "${y}, \\"),
    "true and false": Animal(lambda: numbers(labels=(False, True)).assign(old=[True, False] * 150)),
    "codes with a zero": Animal(codes),
    "a level in two spellings": Animal(cased, says=("'Sick ' and 'sick' are different values",)),
    "several numbers to predict": Animal(
        lambda: prices().assign(z=lambda f: 3 * f.x1 + f.x2), ("y", "z")
    ),
    "a constant column": Animal(lambda: numbers().assign(k=7), says=("one value in every row: k",)),
    "few numbers and words": Animal(
        lambda: spelt(numbers(), "x1", lambda v: "Over 1" if v > 1 else "0-1" if v > 0 else "0"),
        says=("below taken as levels: x1", "dataset.categorical=[x1]"),
    ),
    "numbers with a unit": Animal(
        lambda: spelt(numbers(), ["x2", "x3"], lambda v: f"{v + 9:.2f} kg"),
        named=("x2", "x3"),
        says=("numbers with a unit are texts: x2",),
    ),
}
