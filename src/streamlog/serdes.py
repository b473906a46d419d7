"""Serializers and deserializers by name: "str" (UTF-8), "json", "msgpack".  Nothing is ever unpickled.

A serializer is any callable from an object to bytes; a deserializer any callable from bytes to an object.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

from streamlog.errors import InvalidConfigError

NAMES = ("str", "json", "msgpack")


def named(option: str, name: Any) -> Callable[[Any], Any]:
    """The serializer or deserializer (by the option's own name) that `name` stands for.  Raises InvalidConfigError."""
    if name not in NAMES:
        raise InvalidConfigError(f"{option}={name!r}: a callable or one of {', '.join(map(repr, NAMES))} is wanted")
    both = {"str": _str, "json": _json, "msgpack": _msgpack}[name]()
    return both[1] if option.endswith("deserializer") else both[0]


def _str() -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    return str.encode, bytes.decode


def _json() -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    import json

    encoder = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)
    return lambda value: encoder.encode(value).encode(), json.loads


def _msgpack() -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    import msgpack

    return msgpack.packb, msgpack.unpackb
