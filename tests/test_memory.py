"""Memory that is freed stays with the process, however much it is, in large pages."""

import platform
import subprocess
import sys
from pathlib import Path

from tiny import ROOT

from pretrain.core.memory import keep_freed_memory

PROBE = """
import ctypes
from pretrain.core.memory import keep_freed_memory

def held():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmData")) << 10

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
assert keep_freed_memory()
libc.free(libc.malloc(3 << 30))  # not touched: no memory, addresses alone
print(held() >= 3 << 30)
middle = libc.malloc(64 << 20) + (32 << 20)
with open("/proc/self/smaps") as file:
    for line in file:
        if line[0] in "0123456789abcdef":
            first, last = (int(number, 16) for number in line.split()[0].split("-"))
        elif line.startswith("VmFlags:") and first <= middle < last:
            print("hg" in line.split())
"""


def test_what_is_freed_is_kept():
    if platform.libc_ver()[0] != "glibc":  # another allocator is left as it is
        assert not keep_freed_memory()
        return
    found = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=ROOT)
    large_pages = Path("/sys/kernel/mm/transparent_hugepage").exists()
    assert found.stdout == f"True\n{large_pages}\n", found.stderr
