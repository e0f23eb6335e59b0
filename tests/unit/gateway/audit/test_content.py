"""Content is encrypted, opened by the key it was closed with alone, and redacted before."""

from __future__ import annotations

import pytest

from headrace.core.audit import AuditContent
from headrace.core.errors import ConfigError
from headrace.gateway.audit.content import ContentSafe, open_content
from headrace.gateway.audit.keys import AuditKey, KeyRing, draw
from tests.audit_scene import new_key

SAID = AuditContent(request='{"prompt": "I am ada@example.org"}', answer="Hello ada@example.org")


def test_what_is_closed_is_opened_by_its_key_alone() -> None:
    keys = KeyRing(new_key())
    stored = ContentSafe("full", keys).close(SAID)
    assert "ada" not in stored
    assert open_content(stored, keys) == SAID
    assert ContentSafe("full", keys).close(SAID) != stored
    with pytest.raises(ConfigError, match="not here"):
        open_content(stored, KeyRing(new_key()))
    later = KeyRing(new_key(), [keys.current] if keys.current else [])
    assert open_content(stored, later) == SAID


def test_redacted_content_is_redacted_before_it_is_closed() -> None:
    keys = KeyRing(new_key())
    opened = open_content(ContentSafe("redacted", keys).close(SAID), keys)
    assert opened.request == '{"prompt":"I am [email]"}'
    assert opened.answer == "Hello [email]"


def test_damaged_content_is_not_opened() -> None:
    keys = KeyRing(new_key())
    stored = ContentSafe("full", keys).close(SAID)
    damaged = stored[:-9] + ("A" if stored[-9] != "A" else "B") + stored[-8:]
    with pytest.raises(ConfigError, match="damaged"):
        open_content(damaged, keys)


def test_content_needs_a_key() -> None:
    ContentSafe("none", KeyRing())
    with pytest.raises(ConfigError, match="audit key new"):
        ContentSafe("redacted", KeyRing())


def test_a_key_is_drawn_read_and_never_told() -> None:
    text = draw()
    assert AuditKey.parse(text, "env:X").name == AuditKey.parse(text, "file:Y").name
    assert draw() != text
    for wrong in ("", "hra-", text[:-5], text.removeprefix("hra-"), text + "!"):
        with pytest.raises(ConfigError, match="env:X holds no key") as refused:
            AuditKey.parse(wrong, "env:X")
        assert len(wrong) < 10 or wrong not in refused.value.message


def test_a_key_pasted_into_the_settings_is_refused_unseen() -> None:
    text = draw()
    with pytest.raises(ConfigError, match="hidden") as refused:
        KeyRing.read(text, [], lambda place: place)
    assert text not in refused.value.message
