"""Whether memory that a process frees stays with it, to be used again, or goes to the system."""

import ctypes
import platform

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
"""Numbers of the parameters of mallopt(3) in glibc's malloc.h."""

LARGEST = (2**30, 2**25)
"""Bytes of a block above which it goes back to the system; older glibc allow the second at most."""

AT_FIRST = 2**17
"""Bytes above which glibc returns freed memory, unless it is told otherwise."""


def keep_freed_memory() -> None:
    """Don't give freed blocks back to the system, as far as the C library can be told so (glibc).

    It would return those of more than 32 MB at once, such as the maps of a batch in a network, and
    getting them again costs an exception of the processor for each 4 KB.
    """
    if library := _glibc():
        any(library.mallopt(M_MMAP_THRESHOLD, largest) for largest in LARGEST)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Give what is free back to the system now, and what becomes so from now on."""
    if library := _glibc():
        library.mallopt(M_MMAP_THRESHOLD, AT_FIRST)
        library.mallopt(M_TRIM_THRESHOLD, AT_FIRST)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
