"""How a process of a CPU rank holds its memory."""

import ctypes
import platform

# As <malloc.h> numbers them.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# The most that glibc comes to by itself; larger blocks stay mappings of their own, which leave no gaps behind.
_LARGEST_SHARED = 32 << 20
_NEVER = -1


def keep_freed_memory() -> bool:
    """Have tensors take the place of those that were freed before them; returns whether the C library can.

    By default glibc gives freed memory back to the kernel, which clears every page that it hands out again: each pass
    of a model would pay for its activations anew.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = ((_M_MMAP_THRESHOLD, _LARGEST_SHARED), (_M_TRIM_THRESHOLD, _NEVER))
    return all(libc.mallopt(name, value) == 1 for name, value in settings)
