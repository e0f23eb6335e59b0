"""Sources are parsed strictly: what is misspelled or leads elsewhere is refused before anything is fetched."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.core.errors import ConfigError
from headrace.model.store.source import (
    FileOrigin,
    HubOrigin,
    UrlOrigin,
    WheelOrigin,
    check_url,
    parse_origin,
    parse_source,
    shown,
)


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("hf:org/repo", HubOrigin("org/repo")),
        ("hf:org/repo@v1.0", HubOrigin("org/repo", "v1.0")),
        ("hf:org/repo:q4/model.gguf", HubOrigin("org/repo", "main", "q4/model.gguf")),
        ("hf:org/repo@abc:m.gguf", HubOrigin("org/repo", "abc", "m.gguf")),
        ("pypi:pack-age==0.1.2!data/m.gguf", WheelOrigin("pack-age", "0.1.2", "data/m.gguf")),
        ("pypi:p==1!2.0!m.gguf", WheelOrigin("p", "1!2.0", "m.gguf")),
        ("https://host/a/m.gguf?key=1", UrlOrigin("https://host/a/m.gguf?key=1")),
        ("http://127.0.0.1:80/m.gguf", UrlOrigin("http://127.0.0.1:80/m.gguf")),
        ("http://localhost/m.gguf", UrlOrigin("http://localhost/m.gguf")),
    ],
)
def test_each_spelling_names_its_origin(text: str, origin: object) -> None:
    assert parse_origin(text) == origin


@pytest.mark.parametrize(
    "text",
    [
        "hf:repo",
        "hf:org/..",
        "hf:org/repo@",
        "hf:org/repo@../..",
        "hf:org/repo:../../etc/passwd",
        "hf:org/repo:/etc/passwd",
        "pypi:p!m.gguf",
        "pypi:p==1.0",
        "pypi:--index-url==1!m.gguf",
        "pypi:p==1.0!../m.gguf",
        "pypi:p==1.0!/m.gguf",
        "https://host/",
        "https://host/a/..",
        "https://host/%2e%2e",
        "https://host/a%5Cb.gguf",
        "http://example.com/m.gguf",
        "http://127.0.0.1.example.com/m.gguf",
        "https://user:secret@host/m.gguf",
        "https:///m.gguf",
        "file:",
        "ftp://host/m.gguf",
    ],
)
def test_what_is_misspelled_or_leads_elsewhere_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_source(text)


def test_a_refusal_does_not_repeat_the_password() -> None:
    with pytest.raises(ConfigError) as caught:
        check_url("https://user:secret@host/m.gguf")
    assert "secret" not in str(caught.value)


def test_a_file_source_must_exist(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    assert parse_origin(f"file:{tmp_path}/m.gguf") == FileOrigin((tmp_path / "m.gguf").resolve())
    with pytest.raises(ConfigError, match="does not exist"):
        parse_origin(f"file:{tmp_path}/none.gguf")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf:org/repo", "org/repo"),
        ("hf:org/repo:q4/model.Q4_0.gguf", "model.Q4_0"),
        ("pypi:p==1.0!data/m.gguf", "m"),
        ("https://host/a/m.gguf?key=1", "m"),
    ],
)
def test_a_model_is_called_after_its_file_or_repository(text: str, name: str) -> None:
    assert parse_source(text).name == name


def test_two_sources_never_share_a_directory() -> None:
    keys = {parse_source(text).key for text in ("https://a/m.gguf", "https://b/m.gguf", "hf:a/m.gguf", "hf:o/r:m.gguf")}
    assert len(keys) == 4
    assert all("/" not in key and not key.startswith(".") for key in keys)


def test_what_is_shown_of_a_url_has_no_query() -> None:
    assert shown("https://host/m.gguf?signature=secret") == "https://host/m.gguf"
