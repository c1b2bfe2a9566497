"""Writes docs/config.md from the schema: ``python docs/config_page.py``.

A test holds the page equal to what this prints.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from fl_app.config import checking, schema

HEAD = """# Config

One experiment is one config, composed by Hydra from `conf/`. `fl-app --cfg job` shows the composed
one, `fl-app --help` the groups. On the command line a group is chosen by `dataset=diabetes`, an
option is set by `dataset.test_fraction=0.3`. Every value is checked before any work: a wrong one
gives one line with the key, the value and what is allowed, and exit status 2. `experiment=`,
`method=` and `sweep=` choose several keys at once ([sweeps.md](sweeps.md)).

This page is generated from the options in `fl_app/config/`.
"""


def page() -> str:
    """Return the whole page."""
    parts = [HEAD, "## Top level\n", *_rows(schema.Config, skip={*schema.GROUPS, *schema.SECTIONS})]
    for name, kind in schema.SECTIONS.items():
        parts += [f"\n## `{name}`\n", f"{_summary(kind)}\n", *_rows(kind)]
    for group, options in schema.GROUPS.items():
        parts.append(f"\n## `{group}`\n")
        parts.append(f"Options: {', '.join(f'`{name}`' for name in options)}.\n")
        common = _common(list(options.values()))
        if common:
            parts += ["Every option has:\n", *_rows(next(iter(options.values())), only=common)]
        for names, kind in _kinds(options):
            own = [f.name for f in fields(kind) if f.name not in common and f.name != "name"]
            if own:
                title = ", ".join(f"`{name}`" for name in names)
                parts += [f"\n### {title}\n", f"{_summary(kind)}\n", *_rows(kind, only=set(own))]
    return "\n".join(parts) + "\n"


def _summary(kind: type[Any]) -> str:
    return (kind.__doc__ or "").strip().split("\n")[0]


def _common(kinds: list[type[Any]]) -> set[str]:
    names = [{f.name for f in fields(kind)} for kind in kinds]
    return set.intersection(*names) - {"name"}


def _kinds(options: Any) -> list[tuple[list[str], type[Any]]]:
    found: dict[type[Any], list[str]] = {}
    for name, kind in options.items():
        found.setdefault(kind, []).append(name)
    return [(names, kind) for kind, names in found.items()]


def _rows(
    kind: type[Any], only: set[str] | None = None, skip: set[str] | None = None
) -> Iterator[str]:
    yield "| key | default | allowed | what |"
    yield "|---|---|---|---|"
    for f in fields(kind):
        if (
            f.name == "name"
            or (skip and f.name in skip)
            or (only is not None and f.name not in only)
        ):
            continue
        default = checking.to_text(f.default)
        allowed = checking.allowed(kind, f.name).replace("|", "\\|")
        text = f.metadata["help"].replace("|", "\\|")
        yield f"| `{f.name}` | `{default}` | {allowed} | {text} |"


if __name__ == "__main__":
    Path(__file__).with_name("config.md").write_text(page())
