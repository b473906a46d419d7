"""The least that wakes another process: a word and a payload in a mapped file, and a futex on the word (Linux)."""

from __future__ import annotations

import ctypes
import mmap
import platform

_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine(), 0)
_WAIT, _WAKE = 0, 1
_syscall = ctypes.CDLL(None, use_errno=True).syscall


class Page:
    """A mapped file of one page: a 32-bit word that counts messages, and at byte 64 the payload of the last."""

    def __init__(self, path: str) -> None:
        if not _FUTEX:
            raise NotImplementedError("no futex is known on this machine")
        with open(path, "r+b") as file:
            memory = mmap.mmap(file.fileno(), 4096)
        self._word = ctypes.c_uint32.from_buffer(memory)
        self._payload = ctypes.c_uint64.from_buffer(memory, 64)
        self._address = ctypes.c_void_p(ctypes.addressof(self._word))

    def publish(self, payload: int) -> None:
        """Store a payload, count it, and wake who waits."""
        self._payload.value = payload
        self._word.value += 1
        _syscall(_FUTEX, self._address, _WAKE, 1, None, None, 0)

    def wait_beyond(self, number: int, spin: bool = False) -> None:
        """Sleep, or spin, until more than `number` messages were published."""
        while self._word.value <= number:
            if not spin:
                _syscall(_FUTEX, self._address, _WAIT, ctypes.c_uint32(number), None, None, 0)

    def payload(self) -> int:
        """The last payload."""
        return self._payload.value
