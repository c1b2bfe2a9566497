"""One copy on the disk of the code that all models of this home carry.

A model holds the part of fl_app that predicts, 0.6 MB, and a run has two of them: in the store of
this home equal files are one file with many names.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from fl_app.home import write

__all__ = ["shared"]


def shared(file: Path, location: str, path: str, home: Path) -> bool:
    """Give a file that many models have its name in a model, without a copy.

    Parameters
    ----------
    file : Path
        The file.
    location : str
        Where the model's artifacts are, as MLflow says it.
    path : str
        Its name there.
    home : Path
        As :func:`~fl_app.home.home_dir` returns it; the one copy is in its folder ``code``.

    Returns
    -------
    bool
        Whether it is there; False where the model is elsewhere, or where a file has one name only.
    """
    parts = urlparse(location)
    folder = Path(url2pathname(parts.path) if parts.scheme == "file" else location)
    if not folder.is_relative_to(home / "artifacts"):
        return False
    content = file.read_bytes()
    one = home / "code" / hashlib.sha256(content).hexdigest()
    try:
        if not one.exists():
            one.parent.mkdir(exist_ok=True)
            write(one, content, sync=False)
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        os.link(one, target)
    except OSError:
        return False
    return True
