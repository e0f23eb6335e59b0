"""One file over HTTP into the cache, resumed where it stopped.

Owns the part and, beside it, the entity tag it belongs to. A cut connection is taken up again at once as long as bytes
keep coming; otherwise the part stays for the next pull. Going on is asked for with `If-Range`, so a file that has
changed meanwhile starts anew instead of being glued together from two versions.
Source: RFC 9110 §14 (ranges), §13.1.5 (If-Range).
"""

from __future__ import annotations

import re
from pathlib import Path

import httpx

from headrace.core.errors import ConfigError, PullFailed
from headrace.model.store.partial import PartialFile, Progress, no_space
from headrace.model.store.source import check_url, shown
from headrace.model.store.space import FreeBytes

_MAX_REDIRECTS = 8
_MAX_CUTS = 32
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_TIMEOUT = httpx.Timeout(60.0, connect=20.0)


class _Cut(Exception):
    """The connection ended early."""


class _Restarted(Exception):
    """What was here cannot be continued; it is thrown away and the next try starts at 0."""


class Transfer:
    """Fetches files with one HTTP client. Use as a context manager.

    `token` goes as a bearer token to `token_host` alone and is never shown.
    """

    def __init__(self, *, free_bytes: FreeBytes, token: str | None = None, token_host: str | None = None) -> None:
        self._client = httpx.Client(timeout=_TIMEOUT, headers={"Accept-Encoding": "identity"})
        self._free_bytes = free_bytes
        self._token, self._token_host = token, token_host

    def __enter__(self) -> Transfer:
        return self

    def __exit__(self, *details: object) -> None:
        self._client.close()

    def read(self, url: str, *, limit_bytes: int) -> bytes:
        """Return a small document; PullFailed with the reason when it cannot be had."""
        try:
            response = self._open(url, {})
            try:
                _check_status(response, url)
                body = bytearray()
                for chunk in response.iter_raw():
                    body += chunk
                    if len(body) > limit_bytes:
                        raise PullFailed(f"{shown(url)} is longer than {limit_bytes:,} bytes; is it the right address?")
                return bytes(body)
            finally:
                response.close()
        except httpx.HTTPError as error:
            raise _unreachable(url, error) from error

    def fetch(self, url: str, target: Path, *, sha256: str | None, size_bytes: int | None, progress: Progress) -> str:
        """Fetch `url` to `target` and return its sha256.

        Raises PullFailed: out of reach, refused, wrong size or hash, no disk space. What arrived is kept.
        """
        part = PartialFile(target, total_bytes=size_bytes)
        for _ in range(_MAX_CUTS):
            before = part.num_bytes
            try:
                self._continue(url, part, progress)
                break
            except _Restarted:
                continue
            except (_Cut, httpx.HTTPError) as error:
                if part.num_bytes <= before:
                    raise _unreachable(url, error, part) from error
        else:
            raise PullFailed(f"{shown(url)}: the connection was cut {_MAX_CUTS} times; pull again to go on")
        if size_bytes is not None and part.num_bytes != size_bytes:
            found = part.num_bytes
            part.path.unlink()
            raise PullFailed(f"{target.name} has {found:,} bytes, expected {size_bytes:,}; it is removed, pull again")
        _tag_path(part).unlink(missing_ok=True)  # it belongs to a part, and this is one no more
        return part.finish(sha256, progress)

    def _continue(self, url: str, part: PartialFile, progress: Progress) -> None:
        """Fetch what is missing, once. Raises _Cut or an httpx error when the connection ends early."""
        with part:
            start = part.num_bytes
            if start and start == part.total_bytes:
                return
            headers = {}
            tag = _read_tag(part)
            if start:
                headers = {"Range": f"bytes={start}-", **({"If-Range": tag} if tag else {})}
            response = self._open(url, headers)
            try:
                if response.status_code == 416:  # nothing after `start`: complete, or of another version
                    if _whole_size(response) == start:
                        return
                    part.restart()
                    raise _Restarted
                _check_status(response, url)
                total = self._accept(response, part)
                if total is not None and (free := self._free_bytes(part.path.parent)) < total - part.num_bytes:
                    raise no_space(part.path, part.num_bytes, total, free)
                for chunk in response.iter_raw():  # as they come: a larger buffer is lost at a cut
                    part.append(chunk)
                    progress(part.num_bytes, total, f"download {part.target.name}")
                if total is not None and part.num_bytes < total:
                    raise _Cut(f"{part.num_bytes:,} of {total:,} bytes arrived")
            finally:
                response.close()

    def _accept(self, response: httpx.Response, part: PartialFile) -> int | None:
        """Set the part to where the response starts and return the size of the whole file."""
        start = part.num_bytes
        if response.status_code == 206:
            found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
            if found is None or int(found[1]) != start:
                part.restart()
                raise _Restarted
        elif start:
            part.restart()
        tag = response.headers.get("etag", "")
        _tag_path(part).write_text(tag if tag.startswith('"') else "")  # weak tags do not prove equal bytes
        total = _whole_size(response)
        if part.total_bytes is None:
            part.total_bytes = total
        return total

    def _open(self, url: str, headers: dict[str, str]) -> httpx.Response:
        """Send a GET and follow redirects, each checked before it is followed."""
        request = self._client.build_request("GET", url, headers=headers)
        if self._token is not None and request.url.host == self._token_host:
            request.headers["Authorization"] = f"Bearer {self._token}"
        for _ in range(_MAX_REDIRECTS):
            try:
                check_url(str(request.url))
            except ConfigError as error:
                raise PullFailed(f"{shown(url)} leads to a place that is not fetched from: {error}") from error
            response = self._client.send(request, stream=True, follow_redirects=False)
            if response.next_request is None:
                return response
            response.close()
            request = response.next_request
        raise PullFailed(f"{shown(url)} redirects more than {_MAX_REDIRECTS} times")


def _tag_path(part: PartialFile) -> Path:
    return part.path.with_name(part.path.name + ".etag")


def _read_tag(part: PartialFile) -> str:
    path = _tag_path(part)
    return path.read_text() if path.exists() else ""


def _whole_size(response: httpx.Response) -> int | None:
    """Return the size of the whole file from Content-Range or Content-Length."""
    content_range = response.headers.get("content-range", "")
    size: str = content_range.rpartition("/")[2] if content_range else response.headers.get("content-length", "")
    return int(size) if size.isdecimal() else None


def _check_status(response: httpx.Response, url: str) -> None:
    """Raise PullFailed with a remedy unless the answer carries the file."""
    match response.status_code:
        case 200 | 206:
            return
        case 401 | 403:
            remedy = "accept the model's terms at its page and set HF_TOKEN, or check the address"
        case 404:
            remedy = "check the spelling of repository, revision and file"
        case 429:
            remedy = "the server asks to slow down; pull again later"
        case code if code >= 500:
            remedy = "the server is in trouble; pull again later"
        case _:
            remedy = "check the address"
    raise PullFailed(f"{shown(url)} answered {response.status_code}: {remedy}")


def _unreachable(url: str, error: Exception, part: PartialFile | None = None) -> PullFailed:
    """Make the error for a connection that does not come about."""
    kept = f"; {part.num_bytes / 1e6:,.1f} MB are kept" if part is not None and part.num_bytes else ""
    reason = str(error) or type(error).__name__
    return PullFailed(
        f"cannot fetch {shown(url)}: {reason}{kept}; check the network and proxy, then pull again, or copy the "
        "model here by other means and name it as file:PATH"
    )
