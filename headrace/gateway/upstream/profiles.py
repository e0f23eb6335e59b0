"""Kinds of remote servers, from `profiles.toml`: which fields each understands and how it spells them.

Owns nothing that changes. Invariant: a field that a kind does not understand is refused by name, never dropped; hints
(`cache_control`) may be dropped, because the answer is the same without them.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Literal

import msgspec

from headrace.core.conversation import Wire
from headrace.core.upstream_settings import ProfileName


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"names": "as"}):
    """One kind. The fields are explained at the top of `profiles.toml`."""

    wire: Wire
    max_tokens: str
    sampling: frozenset[str]
    extras: frozenset[str]
    probe: str
    reasoning: frozenset[Literal["effort", "template"]] = frozenset()
    takes_reasoning: bool = False
    names: dict[str, str] = {}
    has_n: bool = True
    has_logprobs: bool = True
    has_tool_choice: bool = True
    keeps_cache_hints: bool = False
    continues_last: bool = False
    counts: Literal["tokenize", "messages"] | None = None
    token_prompts: bool = False
    resumable: bool = False
    key_header: str = "authorization"

    def takes_extra(self, name: str) -> bool:
        """Say whether a field of the caller's wire is passed on."""
        return name in self.extras or "*" in self.extras


@cache
def profiles() -> dict[ProfileName, Profile]:
    """Read the table. Cost: once per process."""
    text = resources.files(__package__).joinpath("profiles.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), dict[ProfileName, Profile])
