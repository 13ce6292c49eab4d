"""What made a file: version, commit, and the number of the file format."""

import functools
import subprocess
from pathlib import Path
from typing import Any

__version__ = "0.1.0"
FORMAT = 1  # raised when an older version could no longer read run.yaml


@functools.cache
def commit() -> str:
    """The commit of a source checkout (`+` when it has changes), "" in an installed package."""
    here = Path(__file__).parent
    if here.parents[1].joinpath(".git").exists():
        try:
            found = subprocess.run(
                ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--exclude=*"],
                capture_output=True, text=True, timeout=10, check=True,
            )  # fmt: skip
            return found.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            pass
    return ""


def made_by() -> dict[str, Any]:
    return {"format": FORMAT, "version": __version__, "commit": commit()}
