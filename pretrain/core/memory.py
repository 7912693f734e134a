"""Host memory: keeps what a step frees for the next step, instead of giving it back to the system and asking again.

A training step on CPU takes hundreds of megabytes of temporary buffers. By default glibc maps and unmaps them each
time, and the kernel clears every page anew: a fifth of a step's time in a virtual machine.
"""

import ctypes
import platform

# Parameters of mallopt(3): (name, value).
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -8, -4, -1, -2
_NEVER, _PAD = -1, 256 << 20  # any other number is a size: 2 GB, the most, is given back in 0.1 s, all others waiting


def keep_freed_memory() -> bool:
    """Tells glibc's allocator to keep freed memory in the process; True where that is possible (Linux with glibc).

    The process stays as large as it was at its peak. Call it before the first large allocation.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _PAD))
    done = [mallopt(name, value) for name, value in settings]  # all of them, even where one is refused
    return all(done)
