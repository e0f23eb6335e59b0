"""Models from the hub: ask which files a repository has, take those a model needs, check each.

Owns nothing. Files are taken at the commit that the listing names, so a push during a pull cannot mix two versions.
Only config, tokenizer and safetensors of the top directory are taken, or the one file that was asked for; pickled
weights never are. The token goes to the hub alone, not to the storage it redirects to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import msgspec

from headrace.core.errors import PullFailed
from headrace.core.settings import HubAccess
from headrace.model.safetensors import is_plain_name
from headrace.model.store.partial import Progress
from headrace.model.store.source import HubOrigin, target_name
from headrace.model.store.space import FreeBytes
from headrace.model.store.transfer import Transfer

_LISTING_LIMIT = 16 << 20
_SMALL_FILES = {
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json",
    "model.safetensors.index.json",
}  # fmt: skip
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class _Lfs(msgspec.Struct, frozen=True):
    sha256: str
    size: int


class _Sibling(msgspec.Struct, frozen=True):
    rfilename: str
    size: int | None = None
    lfs: _Lfs | None = None


class _Listing(msgspec.Struct, frozen=True):
    sha: str
    siblings: tuple[_Sibling, ...]
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HubFiles:
    """What came of a pull: `main` is the file to open, empty for the directory; hashes by file name."""

    main: str
    sha256: dict[str, str]
    license: str | None


def fetch_repository(
    origin: HubOrigin, directory: Path, *, access: HubAccess, free_bytes: FreeBytes, progress: Progress
) -> HubFiles:
    """Fetch the files of a model into `directory`. Raises PullFailed naming what is missing and the remedy."""
    endpoint = access.endpoint.rstrip("/")
    token_host = urlsplit(endpoint).hostname
    with Transfer(free_bytes=free_bytes, token=access.token, token_host=token_host) as transfer:
        revision = quote(origin.revision, safe="")
        url = f"{endpoint}/api/models/{origin.repo}/revision/{revision}?blobs=true"
        listing = _decode(transfer.read(url, limit_bytes=_LISTING_LIMIT), origin.repo)
        wanted, main = _choose(listing, origin)
        hashes: dict[str, str] = {}
        for i, sibling in enumerate(wanted):
            path = quote(sibling.rfilename)
            name = target_name(HubOrigin(origin.repo, origin.revision, sibling.rfilename))
            target = directory / name
            size = sibling.lfs.size if sibling.lfs else sibling.size
            if target.exists() and target.stat().st_size == size:
                if sibling.lfs is not None:
                    hashes[name] = sibling.lfs.sha256
                continue
            hashes[name] = transfer.fetch(
                f"{endpoint}/{origin.repo}/resolve/{listing.sha}/{path}",
                target,
                sha256=sibling.lfs.sha256 if sibling.lfs else None,
                size_bytes=size,
                progress=_Numbered(progress, f"{i + 1} of {len(wanted)}"),
            )
    return HubFiles(main, hashes, _license(listing))


class _Numbered:
    """Progress that says which of several files it is about."""

    def __init__(self, progress: Progress, position: str) -> None:
        self._progress, self._position = progress, position

    def __call__(self, done_bytes: int, total_bytes: int | None, what: str, /) -> None:
        self._progress(done_bytes, total_bytes, f"{what} ({self._position})")


def _decode(body: bytes, repo: str) -> _Listing:
    """Decode and check the hub's answer: nothing in it may steer where files go."""
    try:
        listing = msgspec.json.decode(body, type=_Listing)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PullFailed(f"the hub's listing of {repo} cannot be read: {error}; check HF_ENDPOINT") from error
    if not re.fullmatch(r"[0-9a-f]{7,64}", listing.sha):
        raise PullFailed(f"the hub's listing of {repo} names no commit; check HF_ENDPOINT")
    for sibling in listing.siblings:
        if sibling.lfs is not None and not _SHA256.fullmatch(sibling.lfs.sha256):
            raise PullFailed(f"the hub's listing of {repo} has an impossible hash for '{sibling.rfilename}'")
    return listing


def _choose(listing: _Listing, origin: HubOrigin) -> tuple[list[_Sibling], str]:
    """Return the files to take and the one to open (empty: the directory)."""
    by_name = {sibling.rfilename: sibling for sibling in listing.siblings}
    if origin.file is not None:
        if origin.file not in by_name:
            ggufs = [name for name in by_name if name.endswith(".gguf")]
            raise PullFailed(f"{origin.repo} has no file '{origin.file}'; its GGUF files: {', '.join(ggufs) or 'none'}")
        return [by_name[origin.file]], target_name(origin)
    ggufs = [name for name in by_name if name.endswith(".gguf") and is_plain_name(name)]
    weights = [sibling for name, sibling in by_name.items() if _WEIGHTS.fullmatch(name)]
    if weights:
        if "model.safetensors" in by_name:  # whole and sharded at once: the whole is enough
            weights = [by_name["model.safetensors"]]
        small = [sibling for name, sibling in by_name.items() if name in _SMALL_FILES]
        return [*small, *weights], ""
    if len(ggufs) == 1:
        return [by_name[ggufs[0]]], ggufs[0]
    if ggufs:
        raise PullFailed(
            f"{origin.repo} has {len(ggufs)} GGUF files; name one: hf:{origin.repo}:FILE, {', '.join(ggufs)}"
        )
    raise PullFailed(f"{origin.repo} has neither safetensors nor GGUF files; other weights are not loaded")


def _license(listing: _Listing) -> str | None:
    """Return the licence that the repository is tagged with."""
    return next((tag.removeprefix("license:") for tag in listing.tags if tag.startswith("license:")), None)
