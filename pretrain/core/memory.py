"""Host memory: keeps what a step frees for the next step, instead of giving it back to the system and asking again.

A training step on CPU takes hundreds of megabytes of temporary buffers. By default glibc maps and unmaps them each
time, and the kernel clears every page anew, 4 KiB at a time: a fifth of a step's time in a virtual machine. Only the
heap of the main thread can be kept however large it is. So that is where steps run, which jax would otherwise hand to
a thread of its own; and that heap is of large pages, which most kernels give only where they are asked to.
"""

import ctypes
import os
import platform
import resource
from pathlib import Path

import jax

# Parameters of mallopt(3): (name, value).
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -8, -4, -1, -2
_MORE_ARENAS = 2  # than cores: with one for all threads they wait for each other, with glibc's 8 a core more is held
_NEVER, _PAD = -1, 256 << 20  # any other number is a size: 2 GB, the most, is given back in 0.1 s, all others waiting
_MADV_HUGEPAGE, _LARGE_PAGE = 14, 2 << 20  # bytes
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")


def keep_freed_memory() -> bool:
    """Tells glibc's allocator to keep freed memory in the process; True where that is possible (Linux with glibc).

    The process stays as large as it was at its peak. Call it from the main thread before the first large allocation,
    and before jax is first asked for devices. Steps on other devices than CPU are still handed over and not waited for.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    arenas = (os.cpu_count() or 1) + _MORE_ARENAS
    settings = ((_ARENA_MAX, arenas), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _PAD))
    done = [mallopt(name, value) for name, value in settings]  # all of them, even where one is refused
    _ask_for_large_pages()
    return all(done)


def _ask_for_large_pages() -> None:
    """Of the addresses that the heap will take next, half as many as the machine has memory.

    They are taken and freed, and so stay with the heap; no memory is behind them until they are written to. Where
    addresses are rationed (`ulimit -v`, strict overcommit) they are left alone.
    """
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY or _OVERCOMMIT.read_text().strip() == "2":
        return
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes, libc.madvise.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    block = libc.malloc(size)
    if block is not None:
        first = -(-block // _LARGE_PAGE) * _LARGE_PAGE
        libc.madvise(first, (block + size - first) // _LARGE_PAGE * _LARGE_PAGE, _MADV_HUGEPAGE)
        libc.free(block)
