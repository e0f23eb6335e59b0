"""What is taken out of content, and what is left alone."""

from __future__ import annotations

import msgspec
import pytest

from headrace.gateway.audit.redaction import redact, redact_body


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("write to ada.lovelace+x@mail.example.co.uk!", "write to [email]!"),
        ("card 4111 1111 1111 1111, thanks", "card [card], thanks"),
        ("card 5500-0000-0000-0004", "card [card]"),
        ("amex 378282246310005.", "amex [card]."),
        ("DE89 3704 0044 0532 0130 00 AND MORE", "[iban] AND MORE"),
        ("iban GB29NWBK60161331926819", "iban [iban]"),
        ("call +49 30 901820 now", "call [phone] now"),
        ("call 0049-30-901820", "call [phone]"),
        ("call 030/90182012", "call [phone]"),
        ("call (212) 555-0142", "call [phone]"),
        ("key sk-proj-abcdefghij0123456789", "key [secret]"),
        ("AKIAIOSFODNN7EXAMPLE", "[secret]"),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "[secret]"),
        ("password: hunter22", "password: [secret]"),
        ('api_key = "abc123def"', 'api_key = "[secret]"'),
        ("Authorization: Bearer abc.def.ghi", "Authorization: Bearer [secret]"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVP", "[secret]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMII\nabc\n-----END RSA PRIVATE KEY-----\nend", "[secret]\nend"),
        ("hr-abcdefghjkmn-" + "a" * 52, "[secret]"),
        ("hra-" + "A1_-" * 10, "[secret]"),
    ],
)
def test_what_is_somebodys_is_taken_out(text: str, redacted: str) -> None:
    assert redact(text) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "order 4111 1111 1111 1112 of 2026-11-21, 12:30",  # one digit off: no card
        "3.141592653589793238 and 1000000000000000",
        "version 10.20.30.40, page 12-34",
        "DE88370400440532013000",  # check digits are wrong
        "the token budget is 4096; the secret garden",
        "a@b is no address, nor is @handle",
    ],
)
def test_what_is_nobodys_stays(text: str) -> None:
    assert redact(text) == text


def test_a_body_is_redacted_text_by_text() -> None:
    body = {
        "messages": [{"role": "user", "content": "line\nada@example.org"}],
        "password": "hunter22",
        "card": 4111111111111111,
        "prompt": list(range(20)),
        "max_tokens": 5,
        "stream": True,
    }
    redacted = msgspec.json.decode(redact_body(msgspec.json.encode(body).decode(), is_cut=False))
    assert redacted == {
        "messages": [{"role": "user", "content": "line\n[email]"}],
        "password": "[secret]",
        "card": "[card]",
        "prompt": "[20 tokens]",
        "max_tokens": 5,
        "stream": True,
    }


@pytest.mark.parametrize("is_cut", [True, False])
def test_a_body_that_is_no_json_is_redacted_as_it_reads(is_cut: bool) -> None:
    cut = r'{"content": "call\n+49 30 901820 or m\u0061il\nada@example.org, "'
    redacted = redact_body(cut, is_cut=is_cut)
    assert "901820" not in redacted
    assert "ada" not in redacted
    assert "call\n[phone] or mail\n[email]" in redacted


@pytest.mark.parametrize("piece", ["a", "a@", "1 a", "A1", "-", "eyJ", "+1(", ".a"])
def test_text_that_nearly_fits_everywhere_stays(piece: str) -> None:
    """A pattern that began anew at every letter would take minutes here."""
    text = piece * (65_536 // len(piece))
    assert redact(text) == text
