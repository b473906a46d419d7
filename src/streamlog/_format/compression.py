"""Codecs: the columns of a batch as one compressed block.

A compressed batch has, where the columns would stand, a u32 (bytes of the block), the block, and zeros up to a multiple of 8; the
header's `uncompressed` is the size of the columns.  The blocks:

    1 gzip      one member (RFC 1952)           the standard library's zlib
    2 snappy    the raw format                  cramjam (extra "compression")
    3 lz4       one frame                       cramjam
    4 zstd      one frame (RFC 8878)            cramjam

Nobody believes a size before it was checked: at most `LARGEST` bytes come out of a block, and never more than its header says.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

from streamlog.errors import UnsupportedCompressionError

LARGEST = 64 << 20  # bytes of columns that a compressed batch may hold
_SIZE = struct.Struct("<I")


class _SizeError(ValueError):
    """A block is sound, and of another size than the header says."""


class Codec:
    """One way to compress.  Safe to share between threads."""

    __slots__ = ("_compress", "_decompress", "_errors", "id", "name")

    def __init__(
        self,
        number: int,
        name: str,
        compress: Callable[[bytes, int | None], Any],
        decompress: Callable[[memoryview, int], Any],
        errors: tuple[type[Exception], ...],
    ) -> None:
        """`errors`: what the library raises; whatever else comes out of it is a signal handler's."""
        self.id, self.name, self._compress, self._decompress = number, name, compress, decompress
        self._errors: tuple[type[Exception], ...] = (_SizeError, *errors)

    def compress(self, columns: bytes, level: int | None) -> bytes:
        """What stands in the batch instead of `columns`.  Raises UnsupportedCompressionError."""
        try:
            block = self._compress(columns, level)
        except self._errors as error:  # none is known, and none may hold up what comes after this batch
            raise UnsupportedCompressionError(f"{self.name} refused {len(columns)} bytes: {error}") from None
        return b"".join((_SIZE.pack(len(block)), block, bytes(-(4 + len(block)) & 7)))

    def decompress(self, data: memoryview, size: int) -> memoryview:
        """The `size` bytes of columns in a batch's `data` (all behind its header).  Raises ValueError, which says what is wrong."""
        if not 0 <= size <= LARGEST:
            raise ValueError(f"{size} bytes of columns in a compressed batch, at most {LARGEST} are taken")
        length = _SIZE.unpack_from(data)[0] if len(data) >= _SIZE.size else -1
        if not 0 <= length <= len(data) - _SIZE.size:
            raise ValueError(f"a block of {length} bytes in a batch of {len(data)} bytes of data")
        try:
            columns = self._decompress(data[_SIZE.size : _SIZE.size + length], size)
        except self._errors as error:  # none of them tells more than that the block is damaged
            raise ValueError(f"a damaged {self.name} block: {error}") from None
        return memoryview(columns).toreadonly()


def _gzip() -> Codec:
    import zlib

    def compress(columns: bytes, level: int | None) -> bytes:
        return zlib.compress(columns, -1 if level is None else level, 31)

    def decompress(block: memoryview, size: int) -> bytes:
        inflater = zlib.decompressobj(31)
        columns = inflater.decompress(block, size + 1)  # never more, whatever the block says
        if len(columns) != size or not inflater.eof:
            raise _SizeError(f"it does not hold {size} bytes")
        return columns

    return Codec(1, "gzip", compress, decompress, (zlib.error,))


def _snappy() -> Codec:
    from cramjam import snappy

    return Codec(2, "snappy", lambda columns, _: snappy.compress_raw(columns), _into(snappy.decompress_raw_into), _cramjam_errors())


def _lz4() -> Codec:
    from cramjam import lz4

    def compress(columns: bytes, level: int | None) -> Any:
        compressor = lz4.Compressor(level=1 if level is None else level, content_checksum=False)  # the batch has one: half the time
        compressor.compress(columns)
        return compressor.finish()

    return Codec(3, "lz4", compress, _into(lz4.decompress_into), _cramjam_errors())


def _zstd() -> Codec:
    from cramjam import zstd

    return Codec(4, "zstd", lambda columns, level: zstd.compress(columns, level), _into(zstd.decompress_into), _cramjam_errors())


def _cramjam_errors() -> tuple[type[Exception], ...]:
    import cramjam

    return cramjam.CompressionError, cramjam.DecompressionError


def _into(decompress: Callable[[Any, bytearray], int]) -> Callable[[memoryview, int], bytearray]:
    """Decompress into a buffer of just the size that was promised: what does not fit is an error of the library's."""

    def filled(block: memoryview, size: int) -> bytearray:
        columns = bytearray(size)
        written = decompress(block, columns)
        if written != size:
            raise _SizeError(f"it holds {written} bytes, not {size}")
        return columns

    return filled


_MAKERS = {"gzip": _gzip, "snappy": _snappy, "lz4": _lz4, "zstd": _zstd}
_NAMES = (None, *_MAKERS)  # by number
_codecs: dict[str, Codec] = {}


def codec(name: str) -> Codec:
    """A codec by name.  Raises UnsupportedCompressionError where its library is not installed."""
    found = _codecs.get(name)
    if found is None:
        try:
            found = _codecs[name] = _MAKERS[name]()
        except ImportError:
            raise UnsupportedCompressionError(f"{name} needs the extra: pip install 'pystreamlog[compression]'") from None
    return found


def numbered(number: int) -> Codec:
    """A codec by the number in a batch's attributes.  Raises UnsupportedCompressionError."""
    name = _NAMES[number] if number < len(_NAMES) else None
    if name is None:
        raise UnsupportedCompressionError(f"codec {number} is not known to this program")
    return codec(name)


def name_of(number: int) -> str:
    """What to call the codec of a batch's attributes."""
    return (_NAMES[number] or "none") if number < len(_NAMES) else f"codec {number}"
