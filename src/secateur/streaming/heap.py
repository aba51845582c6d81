"""How the C library gives memory: a choice of the whole process, so it is made by programs and never by an import."""

import ctypes
import sys

M_MMAP_THRESHOLD = -3  # of glibc's <malloc.h>
THRESHOLD = 1 << 20


def steady_heap() -> bool:
    """Map every block of a mebibyte or more on its own, and give it back when it is freed; False where that cannot be asked for.

    glibc by default grows its heap by blocks of up to 32 MiB, and a layer's activations of 8 to 22 MB leave holes in it: peaks of
    equal runs then differ by up to 14%. Mapped, they are equal to 0.1% for any number of layers, for about 5% of a walk's speed.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, THRESHOLD))
    except (OSError, AttributeError):  # another C library
        return False
