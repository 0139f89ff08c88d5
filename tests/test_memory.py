import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import numpy as np
from idc_lightning.memory import keep_freed_memory, return_freed_memory

{first}
def use():
    np.ones(48 * 2**20, dtype=np.uint8)

use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs mallopt of glibc")
def test_freed_blocks_are_used_again_until_they_shall_be_returned() -> None:
    kept, returned, returned_again = (
        int(subprocess.check_output([sys.executable, "-c", FAULTS.format(first=first)], text=True))
        for first in ("keep_freed_memory()", "", "keep_freed_memory(); return_freed_memory()")
    )
    assert kept < 100
    assert returned > 20 * kept
    assert returned_again > 20 * kept
