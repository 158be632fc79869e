"""How a process on the CPU keeps the memory that tensors need for a moment."""

import ctypes
import platform

KEPT = {
    -3: 1 << 30,  # M_MMAP_THRESHOLD: what is larger than this is still asked of the kernel, and given back at once
    -1: 2**31 - 1,  # M_TRIM_THRESHOLD: how much freed memory is kept
    -2: 64 << 20,  # M_TOP_PAD: memory is asked for in pieces of at least this size
}
"""{which of mallopt's parameters: its value in bytes}; the numbers are glibc's own (malloc.h, man 3 mallopt)."""


def keep_freed_memory() -> bool:
    """Has the tensors to come use the memory of those before, from now on, in this process and those that it forks.

    Left to itself glibc hands large pieces back to the kernel when they are freed, and every layer of a model then
    waits for fresh pages to be mapped and zeroed: a tenth of the CPU time of a detector. The process does not shrink
    any more, and hardly grows: it keeps what it once needed.

    Returns:
        whether it could be done: there is nothing to tell other allocators than glibc's.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, size) for parameter, size in KEPT.items())
