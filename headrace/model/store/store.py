"""`Store`: a directory of pulled models, and the way from a name to a model on this machine.

Owns CACHE/models. Invariant: a model's directory has a record exactly when all its files are whole; pulls of one model
by several processes take turns.

    CACHE/models/smollm2-135m/headrace.json                      name, source, licence, sizes, hashes
                             /SmolLM2-135M-Instruct.Q4_1.gguf
                             /….part, download/                  only while a pull runs or has failed
"""

from __future__ import annotations

import difflib
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace.core.errors import ConfigError, PullFailed, UnknownModel
from headrace.core.settings import HubAccess, hub_access
from headrace.model.store.catalogue import catalogue
from headrace.model.store.local import (
    RECORD_NAME,
    LocalModel,
    Record,
    local_model,
    read_record,
    write_record,
)
from headrace.model.store.partial import Progress, silent
from headrace.model.store.source import (
    FileOrigin,
    HubOrigin,
    ModelSource,
    Origin,
    UrlOrigin,
    WheelOrigin,
    is_source,
    parse_source,
    shown,
    target_name,
)
from headrace.model.store.space import FreeBytes, free_bytes
from headrace.model.store.wheels import fetch_wheels


class Store:
    """Models under `cache_dir`, which is made when the first one is pulled.

    hub   where `hf:` leads; None: what the environment says
    free  tells the free bytes of the disk
    """

    def __init__(self, cache_dir: Path, *, hub: HubAccess | None = None, free: FreeBytes = free_bytes) -> None:
        self._root = cache_dir.expanduser() / "models"
        self._hub = hub
        self._free = free

    def resolve(self, name: str) -> ModelSource:
        """Return what a name stands for: a known name, a source, or a path that exists.

        Raises UnknownModel with the nearest names, ConfigError for a source that is misspelled.
        """
        known = catalogue()
        if name in known:
            return known[name]
        if is_source(name):
            return parse_source(name)
        if Path(name).expanduser().exists():
            return parse_source(f"file:{name}")
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(known)
        raise UnknownModel(
            f"unknown model '{name}': it is no known name, no path that exists and no source; known names near it: "
            f"{', '.join(near)}; sources are hf:ORG/REPO, pypi:PACKAGE==VERSION!PATH, https://… and file:PATH",
            param="model",
        )

    def find(self, name: str) -> LocalModel:
        """Return a model that is here already; ConfigError says how to pull it. Same errors as `resolve`."""
        if (found := self.try_find(name)) is None:
            raise ConfigError(f"model '{name}' is not on this machine yet; run `headrace pull {name}`", param="model")
        return found

    def try_find(self, name: str) -> LocalModel | None:
        """Return a model that is here already, None where it would have to be pulled. Same errors as `resolve`."""
        source = self.resolve(name)
        if isinstance(origin := source.origins[0], FileOrigin):
            return _in_place(source, origin)
        return self._pulled(source)

    def pull(self, name: str, progress: Progress | None = None) -> LocalModel:
        """Bring a model here, unless it is, and return it. `progress` hears about each chunk.

        Raises PullFailed with the remedy; what arrived is kept and the next pull goes on from there.
        """
        source = self.resolve(name)
        if isinstance(origin := source.origins[0], FileOrigin):
            return _in_place(source, origin)
        if found := self._pulled(source):
            return found
        directory = self._root / source.key
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PullFailed(f"cannot make {directory}: {error.strerror}; set another cache_dir") from error
        with _alone(directory):
            if found := self._pulled(source):  # another process was faster
                return found
            record = self._fetch(source, directory, progress or silent)
            write_record(directory, record)
        return local_model(directory, record)

    def list(self) -> list[LocalModel]:
        """Return the models that are here, by name."""
        records = [(path.parent, read_record(path.parent)) for path in self._root.glob(f"*/{RECORD_NAME}")]
        found = [local_model(directory, record) for directory, record in records if record is not None]
        return sorted(found, key=lambda model: (model.name, str(model.path)))

    def _pulled(self, source: ModelSource) -> LocalModel | None:
        """Return the model if its record is there, its files are whole, and it is the one that is meant."""
        directory = self._root / source.key
        record = read_record(directory)
        if record is None or (source.sha256 is not None and record.sha256.get(record.main) != source.sha256):
            return None
        return local_model(directory, record)

    def _fetch(self, source: ModelSource, directory: Path, progress: Progress) -> Record:
        """Fetch the files of a source and return the record to keep."""
        main = target_name(source.origins[0])
        license = source.license
        match source.origins[0]:
            case WheelOrigin():
                main = main.removesuffix(".part00")
                hashes = {main: fetch_wheels(source, directory / main, free_bytes=self._free, progress=progress)}
            case UrlOrigin(url):
                # Imported here: the HTTP client costs a tenth of a second that a start with its models in place saves.
                from headrace.model.store.transfer import Transfer

                with Transfer(free_bytes=self._free) as transfer:
                    target = directory / main
                    digest = transfer.fetch(url, target, sha256=source.sha256, size_bytes=None, progress=progress)
                hashes = {main: digest}
            case HubOrigin() as origin:
                from headrace.model.store.hub import fetch_repository

                access = self._hub or hub_access()
                got = fetch_repository(origin, directory, access=access, free_bytes=self._free, progress=progress)
                main, hashes, license = got.main, got.sha256, license or got.license
            case FileOrigin():
                raise AssertionError("a file: source is used where it lies")
        own = (RECORD_NAME, ".lock")
        kept = [
            path for path in directory.iterdir() if path.is_file() and path.name not in own and ".part" not in path.name
        ]
        return Record(
            name=source.name,
            source=" + ".join(_words(origin) for origin in source.origins),
            main=main,
            files={path.name: path.stat().st_size for path in sorted(kept)},
            sha256=hashes,
            license=license,
            license_url=source.license_url,
        )


def _in_place(source: ModelSource, origin: FileOrigin) -> LocalModel:
    """Return a model that lies outside the cache."""
    path = origin.path
    size = (
        sum(file.stat().st_size for file in path.iterdir() if file.is_file()) if path.is_dir() else path.stat().st_size
    )
    return LocalModel(path=path, name=source.name, source=_words(origin), size_bytes=size)


def _words(origin: Origin) -> str:
    """Spell an origin as a person would type it, without a URL's query."""
    match origin:
        case HubOrigin():
            return f"hf:{origin.repo}@{origin.revision}" + (f":{origin.file}" if origin.file else "")
        case WheelOrigin():
            return f"pypi:{origin.package}=={origin.version}!{origin.path}"
        case UrlOrigin():
            return shown(origin.url)
        case FileOrigin():
            return f"file:{origin.path}"


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the directory's lock; a second process waits until the first has pulled."""
    try:
        lock = (directory / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"cannot write in {directory}: {error.strerror}; set another cache_dir") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
