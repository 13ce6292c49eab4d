"""Tables of docs/results.md are what bench/results holds."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_of_results_is_up_to_date():
    found = subprocess.run([sys.executable, str(ROOT / "bench" / "results_page.py"), "--check"],
                           capture_output=True, text=True)  # fmt: skip
    assert found.returncode == 0, found.stderr
