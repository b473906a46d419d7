"""How `streamlog consume` shows a record: kcat's format strings, and names for those most used."""

from __future__ import annotations

import argparse
import base64
import json
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from streamlog.types import Record

    Show: TypeAlias = Callable[[Record], bytes]

_TOKEN = re.compile(rb"%(.)|\\(.)", re.DOTALL)
_ESCAPES = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"0": b"\0", b"\\": b"\\"}


def formatter(text: str) -> Show:
    """The function that turns a record into its bytes.  Raises argparse.ArgumentTypeError."""
    if text in _NAMED:
        return _NAMED[text]
    if "%" not in text:
        raise argparse.ArgumentTypeError(f"{text!r}: {', '.join(_NAMED)} or a text with %s for the value is wanted")
    parts = _compile(text.encode("utf-8", "surrogateescape"))
    return lambda record: b"".join([part if isinstance(part, bytes) else part(record) for part in parts])


def _compile(template: bytes) -> list[bytes | Show]:
    """The parts of a format: literal bytes, and functions of the record."""
    parts: list[bytes | Show] = []
    end = 0
    for token in _TOKEN.finditer(template):
        parts.append(template[end : token.start()])
        field, escape = token.groups()
        part = _FIELDS.get(field) if field is not None else _ESCAPES.get(escape)
        if part is None:
            raise argparse.ArgumentTypeError(f"{token[0].decode(errors='replace')!r} means nothing in a format")
        parts.append(part)
        end = token.end()
    return [part for part in [*parts, template[end:]] if part]


def _text(value: object) -> bytes:
    return str(value).encode()


def _headers(record: Record) -> bytes:
    return b",".join([name.encode() + b"=" + (value or b"") for name, value in record.headers])


_FIELDS: dict[bytes, bytes | Show] = {
    b"%": b"%",
    b"t": lambda record: _text(record.topic),
    b"p": lambda record: _text(record.partition),
    b"o": lambda record: _text(record.offset),
    b"T": lambda record: _text(record.timestamp_ms),
    b"k": lambda record: record.key or b"",
    b"s": lambda record: record.value or b"",
    b"h": _headers,
}


def _value(record: Record) -> bytes:
    return (record.value or b"") + b"\n"


def _key_value(record: Record) -> bytes:
    return (record.key or b"") + b"\t" + (record.value or b"") + b"\n"


def _json(record: Record) -> bytes:
    shown = record._asdict()
    shown["key"], shown["value"] = _json_bytes(record.key), _json_bytes(record.value)
    shown["headers"] = [[name, _json_bytes(value)] for name, value in record.headers]
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _json_bytes(value: bytes | None) -> object:
    """Text where the bytes are UTF-8, else an object that names the encoding."""
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


_NAMED: dict[str, Show] = {"value": _value, "key-value": _key_value, "json": _json}
