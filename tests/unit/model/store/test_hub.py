"""Repositories of the hub, played by a server on loopback."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from headrace.core.errors import PullFailed
from headrace.core.settings import HubAccess, hub_access
from headrace.model.store import Store

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = b"weights" * 1000


def publish(
    site: Any, files: dict[str, bytes], *, lfs: set[str] = frozenset(), revision: str = "main", **more: Any
) -> None:
    """Put a repository org/repo on the site; files in `lfs` are listed with their hash."""
    siblings: list[dict[str, Any]] = []
    for name, data in files.items():
        sibling: dict[str, Any] = {"rfilename": name, "size": len(data)}
        if name in lfs:
            sibling["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        siblings.append(sibling)
        site.files[f"/org/repo/resolve/{COMMIT}/{name}"] = data
    listing = {"id": "org/repo", "sha": COMMIT, "siblings": siblings, "tags": ["license:mit", "llama"], **more}
    site.files[f"/api/models/org/repo/revision/{revision}"] = json.dumps(listing).encode()


def store(site: Any, cache: Path, token: str | None = None) -> Store:
    return Store(cache, hub=HubAccess(site.url, token))


def test_config_tokenizer_and_weights_are_taken_and_nothing_else(site: Any, tmp_path: Path) -> None:
    taken = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": WEIGHTS}
    left = {"pytorch_model.bin": b"pickle", "README.md": b"#", "onnx/model.onnx": b"x", "run.py": b"import os"}
    publish(site, {**taken, **left}, lfs={"model.safetensors"})
    model = store(site, tmp_path).pull("hf:org/repo")
    assert (model.name, model.license) == ("org/repo", "mit")
    assert {path.name for path in model.path.iterdir()} == {*taken, "headrace.json", ".lock"}
    assert (model.path / "model.safetensors").read_bytes() == WEIGHTS
    assert model.size_bytes == sum(map(len, taken.values()))


def test_shards_are_taken_with_their_index(site: Any, tmp_path: Path) -> None:
    shards = {f"model-0000{i}-of-00002.safetensors": WEIGHTS[i:] for i in (1, 2)}
    publish(site, {"config.json": b"{}", "model.safetensors.index.json": b"{}", **shards}, lfs=set(shards))
    model = store(site, tmp_path).pull("hf:org/repo")
    assert {path.name for path in model.path.glob("*.safetensors")} == set(shards)


def test_one_file_of_a_subdirectory_at_a_revision(site: Any, tmp_path: Path) -> None:
    publish(site, {"q4/m.gguf": WEIGHTS, "q8/m.gguf": b"other"}, lfs={"q4/m.gguf"}, revision="v2")
    model = store(site, tmp_path).pull("hf:org/repo@v2:q4/m.gguf")
    assert model.path.name == "m.gguf"
    assert model.path.read_bytes() == WEIGHTS
    assert model.source == "hf:org/repo@v2:q4/m.gguf"


def test_the_only_gguf_file_needs_no_name(site: Any, tmp_path: Path) -> None:
    publish(site, {"m.gguf": WEIGHTS, "README.md": b"#"}, lfs={"m.gguf"})
    assert store(site, tmp_path).pull("hf:org/repo").path.name == "m.gguf"


def test_several_gguf_files_are_listed(site: Any, tmp_path: Path) -> None:
    publish(site, {"a.gguf": WEIGHTS, "b.gguf": WEIGHTS})
    with pytest.raises(PullFailed, match=r"has 2 GGUF files; name one: hf:org/repo:FILE, a.gguf, b.gguf"):
        store(site, tmp_path).pull("hf:org/repo")


def test_pickled_weights_alone_are_refused(site: Any, tmp_path: Path) -> None:
    publish(site, {"config.json": b"{}", "pytorch_model.bin": WEIGHTS})
    with pytest.raises(PullFailed, match="neither safetensors nor GGUF"):
        store(site, tmp_path).pull("hf:org/repo")


def test_weights_with_another_hash_are_refused_and_removed(site: Any, tmp_path: Path) -> None:
    publish(site, {"config.json": b"{}", "model.safetensors": WEIGHTS}, lfs={"model.safetensors"})
    site.files[f"/org/repo/resolve/{COMMIT}/model.safetensors"] = WEIGHTS[::-1]
    with pytest.raises(PullFailed, match=r"model.safetensors has sha256 .* expected"):
        store(site, tmp_path).pull("hf:org/repo")
    assert not list(tmp_path.glob("models/*/model.safetensors*"))


def test_a_cut_goes_on_within_one_pull_and_keeps_the_files_before_it(site: Any, tmp_path: Path) -> None:
    publish(site, {"config.json": b"{}", "model.safetensors": WEIGHTS}, lfs={"model.safetensors"})
    path = f"/org/repo/resolve/{COMMIT}/model.safetensors"
    site.cuts[path] = [3000, 0]
    hub = store(site, tmp_path)
    with pytest.raises(PullFailed):
        hub.pull("hf:org/repo")
    site.requests.clear()
    assert (hub.pull("hf:org/repo").path / "model.safetensors").read_bytes() == WEIGHTS
    assert [path for path, _ in site.requests if "config.json" in path] == []
    assert site.ranges()[-1] == "bytes=3000-"


@pytest.mark.parametrize("name", ["../config.json", "/etc/passwd", "a/../../model.safetensors"])
def test_names_in_a_listing_cannot_lead_out(site: Any, tmp_path: Path, name: str) -> None:
    publish(site, {name: b"{}", "config.json": b"{}", "model.safetensors": WEIGHTS})
    model = store(site, tmp_path / "cache").pull("hf:org/repo")
    assert {path.name for path in model.path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "headrace.json",
        ".lock",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.parametrize(
    "listing",
    [
        b"<html>",
        b"[]",
        b'{"sha": "../..", "siblings": []}',
        json.dumps(
            {"sha": COMMIT, "siblings": [{"rfilename": "m.gguf", "lfs": {"sha256": "x", "size": 1}}]},
        ).encode(),
    ],
)
def test_a_listing_that_cannot_be_right_is_refused(site: Any, tmp_path: Path, listing: bytes) -> None:
    site.files["/api/models/org/repo/revision/main"] = listing
    with pytest.raises(PullFailed, match="the hub's listing of org/repo"):
        store(site, tmp_path).pull("hf:org/repo")


def test_the_token_goes_to_the_hub_and_not_beyond(site: Any, tmp_path: Path) -> None:
    publish(site, {"m.gguf": WEIGHTS}, lfs={"m.gguf"})
    elsewhere = site.url.replace("127.0.0.1", "localhost")
    site.files["/blob"] = WEIGHTS
    site.redirects[f"/org/repo/resolve/{COMMIT}/m.gguf"] = f"{elsewhere}/blob"
    model = store(site, tmp_path, token="hf_secret").pull("hf:org/repo")
    sent = {path.partition("?")[0]: headers.get("authorization") for path, headers in site.requests}
    assert sent.pop("/blob") is None
    assert set(sent.values()) == {"Bearer hf_secret"}
    assert "hf_secret" not in (model.path.parent / "headrace.json").read_text()


def test_a_gated_repository_says_what_to_do(site: Any, tmp_path: Path) -> None:
    site.statuses["/api/models/org/repo/revision/main"] = 401
    with pytest.raises(PullFailed, match=r"answered 401: accept the model's terms .* HF_TOKEN") as caught:
        store(site, tmp_path, token="hf_secret").pull("hf:org/repo")
    assert "hf_secret" not in str(caught.value)


def test_hub_access_comes_from_the_usual_names_and_hides_the_token() -> None:
    access = hub_access({"HF_ENDPOINT": "https://mirror", "HF_TOKEN": "hf_secret"})
    assert (access.endpoint, access.token) == ("https://mirror", "hf_secret")
    assert "hf_secret" not in repr(access)
    assert hub_access({}).token is None
