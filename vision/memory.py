"""How the C library keeps memory."""

import contextlib
import ctypes
import sys

# glibc's malloc.h. A trim threshold above 2^31 - 1 is not taken on every platform.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_TRIM = 2**31 - 1
# The second is the most that older ones take: HEAP_MAX_SIZE / 2 of glibc 2.34 on 64 bits.
MMAP_THRESHOLDS = (2**30, 2**25)


def keep_memory() -> None:
    """Let glibc keep freed blocks instead of handing each one back to the kernel.

    Activations are large: without this each is mapped, and filled with zeros by the kernel, anew
    at every step. Other C libraries keep their own ways.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        # Alone, the trim threshold would keep glibc from raising the other one by itself.
        if any(libc.mallopt(M_MMAP_THRESHOLD, threshold) for threshold in MMAP_THRESHOLDS):
            libc.mallopt(M_TRIM_THRESHOLD, LARGEST_TRIM)
