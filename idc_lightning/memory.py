"""Memory that a process frees stays with it, to be used again."""

import ctypes
import platform

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
"""Numbers of the parameters of mallopt(3) in glibc's malloc.h."""

LARGEST = (2**30, 2**25)
"""Bytes of a block above which it goes back to the system; older glibc allow the second at most."""


def keep_freed_memory() -> None:
    """Don't give freed blocks back to the system, as far as the C library can be told so (glibc).

    It would return those of more than 32 MB at once, such as the maps of a batch in a network, and
    getting them again costs an exception of the processor for each 4 KB.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for largest in LARGEST:
        if mallopt(M_MMAP_THRESHOLD, largest):
            break
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
