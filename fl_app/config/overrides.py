"""Texts and lists as Hydra's grammar of overrides reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["bracket", "quoted"]


def bracket(names: Sequence[str | int]) -> str:
    """Write names, or whole numbers, as Hydra reads a list of them."""
    return f"[{','.join(str(n) if isinstance(n, int) else quoted(n) for n in names)}]"


def quoted(text: str) -> str:
    r"""Write a text as Hydra reads it, whatever it holds: as it is if it is a plain word or path.

    In quotes, Hydra takes backslashes as they are unless a quotation mark follows them, and
    OmegaConf unless ``${`` does: only those are doubled.

    Examples
    --------
    >>> print(quoted("plain"), quoted("7"), quoted('a "b" ${c}\\'))
    plain "7" "a \"b\" \${c}\\"
    """
    is_word = re.fullmatch(r"[A-Za-z_/][\w./-]*", text, re.ASCII)
    if is_word and text.lower() not in ("null", "true", "false", "nan", "inf"):
        return text
    text = re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + "\\${", text)
    text = re.sub(r'(\\*)("|\Z)', lambda m: m[1] * 2 + (m[2] and '\\"'), text)
    return f'"{text}"'
