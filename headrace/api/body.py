"""Request bodies: read within a limit, decoded strictly, refused by name.

Invariant: every refusal names the field and, for unknown ones, the nearest that exists.
Large bodies are decoded in a thread so that the event loop keeps serving streams.
"""

from __future__ import annotations

import asyncio
import difflib
import re
from functools import cache
from typing import TypeVar

import msgspec

from headrace.api.openai_types import ANY, NEUTRAL, GenerationBody
from headrace.api.visit import Visit
from headrace.core.errors import BodyTooLarge, InvalidRequest, MalformedBody, UnknownParameter, UnsupportedParameter

BodyT = TypeVar("BodyT", bound=msgspec.Struct)

_INLINE_BYTES = 128 << 10  # about a millisecond of decoding
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*?)`(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_PATH = re.compile(r" - at `\$\.?(?P<path>.*)`$")


async def read_body(visit: Visit, body_type: type[BodyT], max_bytes: int) -> BodyT:
    """Read and decode the body. Raises BodyTooLarge, MalformedBody or UnknownParameter."""
    declared = visit.headers.raw.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(int(declared), max_bytes)
    raw = await _read(visit, max_bytes)
    if visit.trail is not None:
        visit.trail.read(raw)
    if len(raw) <= _INLINE_BYTES:
        return decode(raw, body_type)
    return await asyncio.to_thread(decode, raw, body_type)


async def _read(visit: Visit, max_bytes: int) -> bytes:
    """Return the whole body, which mostly comes at once. Raises BodyTooLarge or MalformedBody."""
    parts: list[bytes] = []
    size, has_more = 0, True
    while has_more:
        message = await visit.receive()
        if message["type"] == "http.disconnect":
            raise MalformedBody("the connection closed before the whole body arrived; send it again")
        part: bytes = message.get("body", b"")
        has_more = message.get("more_body", False)
        size += len(part)
        if size > max_bytes:
            raise _too_large(size, max_bytes)
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def decode(raw: bytes, body_type: type[BodyT]) -> BodyT:
    """Decode JSON strictly. What is known but not served is refused by `refuse_unsupported` once the model is known."""
    if not raw:
        raise MalformedBody("the body is empty; send a JSON object")
    try:
        body: BodyT = _decoder(body_type).decode(raw)
    except msgspec.ValidationError as err:
        raise _explain(str(err), body_type) from err
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        raise MalformedBody(f"the body is not JSON: {err}") from err
    if isinstance(body, GenerationBody) and body.stream_options is not None:
        refuse_unsupported(body.stream_options, "stream_options.")
        if not body.stream:
            raise InvalidRequest("stream_options needs stream: true; set it or leave them out", param="stream_options")
    return body


@cache
def _decoder(body_type: type[BodyT]) -> msgspec.json.Decoder[BodyT]:
    return msgspec.json.Decoder(body_type)


def refuse_unsupported(body: msgspec.Struct, where: str = "") -> None:
    """Raise UnsupportedParameter if a field that is not served asks for something."""
    for name in _unserved(type(body)):
        value = getattr(body, name)
        if value is None or is_neutral(name, value):
            continue
        raise UnsupportedParameter(f"'{where}{name}' is not supported by this server; leave it out", param=where + name)


def is_neutral(name: str, value: object) -> bool:
    """Say whether a field that is not served asks for nothing with this value."""
    return any(neutral is ANY or neutral == value for neutral in NEUTRAL.get(name, ()))


_UNSERVED: dict[type[msgspec.Struct], tuple[str, ...]] = {}


def _unserved(body_type: type[msgspec.Struct]) -> tuple[str, ...]:
    names = _UNSERVED.get(body_type)
    if names is None:
        names = tuple(field.name for field in msgspec.structs.fields(body_type) if field.type is object)
        _UNSERVED[body_type] = names
    return names


def _too_large(size: int, max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body has at least {size:,} bytes; the limit is {max_bytes:,}; shorten it or raise server.max_body_bytes"
    )


def _explain(message: str, body_type: type[msgspec.Struct]) -> MalformedBody | UnknownParameter:
    unknown = _UNKNOWN.match(message)
    if unknown is None:
        path = _PATH.search(message)
        param = path["path"] if path else None
        return MalformedBody(f"'{param}': {message[: path.start()]}" if path else message, param=param)
    name, path_text = unknown["name"], unknown["path"]
    full = f"{path_text}.{name}" if path_text else name
    near = difflib.get_close_matches(name, _names_at(body_type, path_text), n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "; leave it out"
    return UnknownParameter(f"unknown parameter '{full}'{hint}", param=full)


def _names_at(body_type: type[msgspec.Struct], path: str | None) -> list[str]:
    """List the fields of the struct that `path` points into (one level is all the wire has)."""
    if not path:
        return [field.name for field in msgspec.structs.fields(body_type)]
    head = re.split(r"[.\[]", path)[0]
    for field in msgspec.structs.fields(body_type):
        if field.name == head:
            return [name for part in _structs_in(field.type) for name in part.__struct_fields__]
    return []


def _structs_in(annotation: object) -> list[type[msgspec.Struct]]:
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return [annotation]
    return [found for arg in getattr(annotation, "__args__", ()) for found in _structs_in(arg)]
