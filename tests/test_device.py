"""What the machine is asked for."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from pointillist.engine.device import keep_freed_memory
if {keep}:
    keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(after - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept_for_the_next_tensor():
    """64 MiB are 16,384 pages of 4 KiB, or 32 of 2 MiB. A system short of memory may take pages
    back by itself: of three tries one has to be undisturbed.
    """

    def faults(keep: bool) -> int:
        return int(subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], check=True,
                                  capture_output=True, text=True).stdout)  # fmt: skip

    assert min(faults(False) for _ in range(3)) >= 30 > min(faults(True) for _ in range(3))
