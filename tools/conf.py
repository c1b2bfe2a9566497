"""Writes what is told of the options: ``conf/``'s files of them and docs/config.md.

By hand are, in ``conf/config.yaml``, the lists before and after the keys, and the files that choose
several keys at once: ``conf/experiment``, ``conf/method`` and ``conf/sweep``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from fl_app.config import GROUPS, SECTIONS, Config, to_dict
from fl_app.config.checking import allowed, facts, to_text

ROOT = Path(__file__).parents[1]
PAGE = "docs/config.md"
HEAD = """# Config

One experiment is one config, composed by Hydra from `conf/`. `fl-app --cfg job` shows the composed
one, `fl-app --help` the groups. On the command line a group is chosen by `dataset=diabetes`, an
option is set by `dataset.test_fraction=0.3`. Every value is checked before any work: a wrong one
gives one line with the key, the value and what is allowed, and exit status 2. `experiment=`,
`method=` and `sweep=` choose several keys at once ([sweeps.md](sweeps.md)).

## A site's own settings

`FL_APP_HOME/conf/local/default.yaml` holds what a machine or a site wants in all its runs:

    defaults:
      - override /dataset: heart_disease
    tracking:
      uri: https://mlflow.example.org
    runtime:
      superlink: hospital
    min_rows: 20

It comes after the defaults below and before `experiment=`, `method=`, `sweep=` and what is typed.
`fl-app`, sweeps, `flwr run` (where its ServerApp runs) and the live page read it. An option is
chosen below `defaults`; a key counts where the chosen option has it, so that `runtime.superlink`
above is for `runtime=deployment` alone. A mistake in it is one line with file and key, and exit
status 2; `fl-app '~local@_global_'` leaves it out once. Files of your own beside it, such as
`FL_APP_HOME/conf/experiment/mine.yaml`, are found as `experiment=mine`. Nodes are never sent it.

`make conf` writes this page and the comments in `conf/` from the options in `fl_app/config/`.
"""


def written() -> dict[str, str]:
    """Return the text of each file by its path in the repository."""
    texts = {
        f"conf/{group}/{name}.yaml": _option(group, kind)
        for group, options in GROUPS.items()
        for name, kind in options.items()
    }
    top = "conf/config.yaml"
    return texts | {top: _top((ROOT / top).read_text()), PAGE: page()}


# ---------------------------------------------------------------------------- conf/
def _option(group: str, kind: type[Any]) -> str:
    head = _comment(f"{group}={kind.name}: {_summary(kind)}")
    return "\n".join([f"{head}name: {kind.name}\n", *_keys(kind)])


def _top(text: str) -> str:
    """Write the keys of ``conf/config.yaml`` between the two lists that are made by hand."""
    head, tail = text.partition("\n\n")[0], text.partition("\nhydra:\n")[2]
    keys = [*_keys(Config)]
    for name, kind in SECTIONS.items():
        own = textwrap.indent("\n".join(_keys(kind)), "  ", lambda line: bool(line.strip()))
        keys.append(f"{_comment(_summary(kind))}{name}:\n{own}")
    return "\n".join([f"{head}\n", *keys, f"hydra:\n{tail}"])


def _keys(kind: type[Any]) -> Iterator[str]:
    """Yield each key but the name with its default, below its help and what is allowed."""
    values = to_dict(kind())
    for key in _own(kind):
        said = _comment(facts(kind, key)["help"]) + _comment(f"Allowed: {allowed(kind, key)}.")
        yield said + yaml.safe_dump({key: values[key]}, allow_unicode=True)


def _comment(text: str) -> str:
    lines = textwrap.wrap(text, 97, break_long_words=False, break_on_hyphens=False)
    return "".join(f"# {line}\n" for line in lines)


def _own(kind: type[Any]) -> list[str]:
    """Return the keys of a class that are no group, no section and no name."""
    return [f.name for f in fields(kind) if f.name not in ("name", *GROUPS, *SECTIONS)]


def _summary(kind: type[Any]) -> str:
    """Return what a class says of itself, without what is said to those who build from it."""
    line = (kind.__doc__ or "").split("\n")[0]
    return line.partition("; built ")[0].rstrip(".") + "."


# ---------------------------------------------------------------------------- docs/config.md
def page() -> str:
    """Return the page of all keys."""
    parts = [HEAD, "## Top level\n", *_table(Config, _own(Config))]
    for name, kind in SECTIONS.items():
        parts += [f"\n## `{name}`\n", f"{_summary(kind)}\n", *_table(kind, _own(kind))]
    for group, options in GROUPS.items():
        default = to_dict(Config())[group]["name"]
        parts += [f"\n## `{group}`\n", f"`{default}` where nothing is chosen.\n"]
        parts += ["| option | what |", "|---|---|"]
        parts += [f"| `{name}` | {_cell(_summary(kind))} |" for name, kind in options.items()]
        common = _common(list(options.values()))
        if common:
            parts += ["\nEvery option has:\n", *_table(options[default], common)]
        for name, kind in options.items():
            usual = {*_rows(options[default], common)}
            own = [row for row in _rows(kind, _own(kind)) if row not in usual]
            if own:
                parts += [f"\n### `{name}`\n", *_COLUMNS, *own]
    return "\n".join(parts) + "\n"


_COLUMNS = ("| key | default | allowed | what |", "|---|---|---|---|")


def _common(kinds: Sequence[type[Any]]) -> list[str]:
    """Return the keys that all options of a group have."""
    return [key for key in _own(kinds[0]) if all(key in _own(kind) for kind in kinds)]


def _table(kind: type[Any], keys: Sequence[str]) -> list[str]:
    return [*_COLUMNS, *_rows(kind, keys)]


def _rows(kind: type[Any], keys: Sequence[str]) -> Iterator[str]:
    values = to_dict(kind())
    for key in keys:
        cells = (allowed(kind, key), facts(kind, key)["help"])
        yield f"| `{key}` | `{to_text(values[key])}` | {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Write the files."""
    for path, text in written().items():
        (ROOT / path).write_text(text)


if __name__ == "__main__":
    main()
