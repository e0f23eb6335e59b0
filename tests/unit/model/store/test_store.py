"""Names, the cache and what it remembers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from headrace.core.errors import ConfigError, PullFailed, UnknownModel
from headrace.core.settings import Settings
from headrace.model.store import Store
from headrace.model.store.catalogue import catalogue


def test_a_misspelled_name_gets_the_nearest_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match=r"unknown model 'smolm2-135m'.*near it: smollm2-135m"):
        Store(tmp_path).resolve("smolm2-135m")


def test_a_name_like_no_other_gets_them_all(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match=", ".join(catalogue())):
        Store(tmp_path).resolve("zzz")


def test_the_default_model_is_in_the_catalogue() -> None:
    assert set(Settings().models) <= set(catalogue())


def test_every_known_model_has_a_hash_a_size_and_terms() -> None:
    for name, source in catalogue().items():
        assert source.name == source.key == name
        assert source.origins
        assert source.sha256 is not None
        assert len(source.sha256) == 64
        assert source.size_bytes
        assert source.download_bytes
        assert source.license
        assert source.license_url


def test_a_path_that_exists_is_used_where_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "own.gguf"
    path.write_bytes(b"12345")
    store = Store(tmp_path / "cache")
    for spelling in (str(path), f"file:{path}"):
        model = store.pull(spelling)
        assert (model.path, model.name, model.size_bytes) == (path, "own", 5)
        assert store.find(spelling) == model
    assert not (tmp_path / "cache").exists()
    assert store.list() == []


def test_a_model_that_is_not_here_says_how_to_get_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.try_find("smollm2-135m") is None
    with pytest.raises(ConfigError, match="run `headrace pull smollm2-135m`"):
        store.find("smollm2-135m")


def test_a_model_whose_file_was_cut_short_is_pulled_again(site: Any, tmp_path: Path) -> None:
    site.files["/m.gguf"] = b"x" * 1000
    store = Store(tmp_path)
    model = store.pull(f"{site.url}/m.gguf")
    assert store.find(f"{site.url}/m.gguf") == model
    model.path.write_bytes(b"x" * 10)
    assert store.try_find(f"{site.url}/m.gguf") is None
    assert store.list() == []
    assert store.pull(f"{site.url}/m.gguf").path.stat().st_size == 1000


def test_a_record_that_cannot_be_read_counts_as_none(site: Any, tmp_path: Path) -> None:
    site.files["/m.gguf"] = b"x"
    store = Store(tmp_path)
    model = store.pull(f"{site.url}/m.gguf")
    (model.path.parent / "headrace.json").write_text("{")
    assert store.list() == []
    assert store.pull(f"{site.url}/m.gguf") == model


def test_two_pulls_of_one_model_fetch_it_once(site: Any, tmp_path: Path) -> None:
    site.files["/m.gguf"] = b"x" * 100_000
    found: list[Path] = []

    def pull() -> None:
        found.append(Store(tmp_path).pull(f"{site.url}/m.gguf").path)

    threads = [threading.Thread(target=pull) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 4
    assert len(site.requests) == 1


def test_a_cache_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PullFailed, match="set another cache_dir"):
        Store(tmp_path / "file").pull("https://127.0.0.1:1/m.gguf")


def test_the_default_model_is_pulled_whole(smollm2_path: Path) -> None:
    assert smollm2_path.stat().st_size == catalogue()["smollm2-135m"].size_bytes
