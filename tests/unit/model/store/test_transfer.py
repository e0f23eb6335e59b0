"""Downloads over HTTP: resumed after a cut, checked at the end, and clear about what went wrong."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from headrace.core.errors import PullFailed
from headrace.model.store import LocalModel, Store

BODY = bytes(range(256)) * 12000  # three chunks
DIGEST = hashlib.sha256(BODY).hexdigest()


def part_of(store_dir: Path) -> Path:
    [found] = store_dir.glob("models/*/*.part")
    return found


def pull(cache: Path, site: Any, **more: Any) -> LocalModel:
    return Store(cache, **more).pull(f"{site.url}/m.gguf")


def test_a_file_arrives_whole_and_is_remembered(site: Any, tmp_path: Path) -> None:
    site.files["/m.gguf"] = BODY
    steps: list[tuple[int, int | None, str]] = []
    store = Store(tmp_path)
    model = store.pull(f"{site.url}/m.gguf", lambda done, total, what: steps.append((done, total, what)))
    assert model.path.read_bytes() == BODY
    assert model.size_bytes == len(BODY)
    assert store.list() == [model]
    downloads = [(done, total) for done, total, what in steps if what == "download m.gguf"]
    assert downloads == sorted(downloads)
    assert len(downloads) > 1
    assert downloads[-1] == (len(BODY), len(BODY))
    store.pull(f"{site.url}/m.gguf")
    assert len(site.requests) == 1


def test_a_cut_connection_goes_on_where_it_stopped(site: Any, tmp_path: Path) -> None:
    site.files["/m.gguf"], site.etags["/m.gguf"] = BODY, '"v1"'
    site.cuts["/m.gguf"] = [1_000_000, 500_000]
    assert pull(tmp_path, site).path.read_bytes() == BODY
    first, second, third = site.ranges()
    assert first is None
    assert second == "bytes=1000000-"
    assert third == "bytes=1500000-"
    assert site.requests[1][1]["if-range"] == '"v1"'


def test_a_failed_pull_keeps_what_arrived_for_the_next_one(site: Any, tmp_path: Path) -> None:
    site.files["/m.gguf"], site.etags["/m.gguf"] = BODY, '"v1"'
    site.cuts["/m.gguf"] = [1_000_000, 0]
    with pytest.raises(PullFailed, match=r"1\.0 MB are kept"):
        pull(tmp_path, site)
    assert part_of(tmp_path).stat().st_size == 1_000_000
    assert pull(tmp_path, site).path.read_bytes() == BODY
    assert site.ranges()[-1] == "bytes=1000000-"
    assert not list(tmp_path.glob("models/*/*.part*"))


def test_a_file_that_changed_meanwhile_starts_anew(site: Any, tmp_path: Path) -> None:
    site.files["/m.gguf"], site.etags["/m.gguf"] = BODY, '"v1"'
    site.cuts["/m.gguf"] = [1_000_000, 0]
    with pytest.raises(PullFailed):
        pull(tmp_path, site)
    changed = BODY[::-1]
    site.files["/m.gguf"], site.etags["/m.gguf"] = changed, '"v2"'
    assert pull(tmp_path, site).path.read_bytes() == changed


def test_a_server_without_ranges_starts_anew(site: Any, tmp_path: Path) -> None:
    site.files["/m.gguf"] = BODY
    site.has_ranges = False
    site.cuts["/m.gguf"] = [1_000_000]
    assert pull(tmp_path, site).path.read_bytes() == BODY


def test_a_part_longer_than_the_file_starts_anew(site: Any, tmp_path: Path) -> None:
    site.files["/m.gguf"] = BODY
    site.cuts["/m.gguf"] = [1_000_000, 0]
    with pytest.raises(PullFailed):
        pull(tmp_path, site)
    site.files["/m.gguf"] = BODY[:1000]
    assert pull(tmp_path, site).path.read_bytes() == BODY[:1000]


def test_a_part_that_is_complete_needs_no_bytes(site: Any, tmp_path: Path) -> None:
    site.files["/m.gguf"] = BODY
    site.cuts["/m.gguf"] = [1_000_000, 0]
    with pytest.raises(PullFailed):
        pull(tmp_path, site)
    part_of(tmp_path).write_bytes(BODY)
    assert pull(tmp_path, site).path.read_bytes() == BODY


def test_a_full_disk_is_said_before_the_first_byte(site: Any, tmp_path: Path) -> None:
    site.files["/m.gguf"] = BODY
    with pytest.raises(PullFailed, match=r"3 MB more needed, 1 MB free"):
        pull(tmp_path, site, free=lambda path: 1_000_000)


def test_a_disk_that_fills_up_says_how_much_is_needed(site: Any, tmp_path: Path) -> None:
    site.files["/m.gguf"] = BODY
    store = Store(tmp_path)
    directory = tmp_path / "models" / store.resolve(f"{site.url}/m.gguf").key
    directory.mkdir(parents=True)
    (directory / "m.gguf.part").symlink_to("/dev/full")  # every write fails as on a full disk
    with pytest.raises(PullFailed, match=r"no disk space .* 3 MB more needed"):
        store.pull(f"{site.url}/m.gguf")
    assert (directory / "m.gguf.part").is_symlink()
    assert store.list() == []


@pytest.mark.parametrize(("status", "remedy"), [(404, "spelling"), (403, "terms"), (429, "later"), (503, "later")])
def test_a_refusal_names_status_and_remedy(site: Any, tmp_path: Path, status: int, remedy: str) -> None:
    site.statuses["/m.gguf"] = status
    with pytest.raises(PullFailed, match=f"answered {status}: .*{remedy}"):
        pull(tmp_path, site)


def test_a_dead_server_names_the_way_out(site: Any, tmp_path: Path) -> None:
    with pytest.raises(PullFailed, match=r"cannot fetch http://127.0.0.1:1/m.gguf: .*file:PATH"):
        Store(tmp_path).pull("http://127.0.0.1:1/m.gguf")


def test_redirects_are_followed_but_never_to_an_open_wire(site: Any, tmp_path: Path) -> None:
    site.files["/real.gguf"] = BODY
    site.redirects["/m.gguf"] = "/real.gguf"
    assert pull(tmp_path / "a", site).path.read_bytes() == BODY
    site.redirects["/m.gguf"] = "http://example.com/m.gguf"
    with pytest.raises(PullFailed, match="leads to a place that is not fetched from"):
        pull(tmp_path / "b", site)
    site.redirects["/m.gguf"] = "/m.gguf"
    with pytest.raises(PullFailed, match="redirects more than 8 times"):
        pull(tmp_path / "c", site)


def test_a_query_shows_in_no_message_and_no_record(site: Any, tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(PullFailed) as caught:
        store.pull(f"{site.url}/none.gguf?key=secret")
    assert "secret" not in str(caught.value)
    site.files["/m.gguf"] = BODY
    model = store.pull(f"{site.url}/m.gguf?key=secret")
    assert "secret" not in (model.path.parent / "headrace.json").read_text()
    assert "secret" not in str(model.path)
