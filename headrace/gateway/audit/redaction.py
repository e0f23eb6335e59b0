"""What is taken out of content before it is kept: addresses, numbers of people and accounts, secrets.

Owns the patterns. Numbers of cards and accounts are taken out only if their check digits are right, so that other long
numbers stay readable. Every pattern is bounded: time is linear in the text.
Not a guarantee: what no pattern describes stays in; `audit.content = "none"` keeps nothing at all.
Source: ISO/IEC 7812-1 (Luhn), ISO 13616 (IBAN, ISO 7064 mod 97-10), E.164; the makers' own key formats.
"""

from __future__ import annotations

import re

import msgspec

_EMAIL = re.compile(r"[\w.%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]){11,30}(?![A-Za-z0-9])")
_CARD = re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?!\d)")
_PHONE = re.compile(
    r"(?<![\w.+])(?:(?:\+|00)[1-9]\d{0,2}(?:[ ./()-]{0,2}\d){7,12}"  # +49 30 901820
    r"|\(?0\d{1,4}\)?[ /-](?:\d[ /-]?){4,10}\d"  # 030 / 901 82-0
    r"|\(?[2-9]\d{2}\)?[ .-]?[2-9]\d{2}[ .-]\d{4})(?!\d)"  # (212) 555-0142
)
_NAMED = re.compile(
    r"(?i)\b((?:pass(?:word|wd|phrase)?|secret|token|api[_-]?key|access[_-]?key|authorization)\b[\"']?\s{0,4}[:=]\s{0,4}"
    r"[\"']?(?:bearer\s{1,4}|basic\s{1,4})?)([^\s\"',;]{6,512})"
)
_SECRET = re.compile(
    r"-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----.{0,16384}?(?:-----END [A-Z ]{0,32}PRIVATE KEY-----|\Z)"
    r"|\bhra?-[A-Za-z0-9_-]{24,128}"
    r"|\b(?:sk|pk|rk|whsec)[-_][A-Za-z0-9_-]{16,256}"
    r"|\b(?:gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|npm_|hf_|pypi-)[A-Za-z0-9_-]{16,256}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|\bAIza[A-Za-z0-9_-]{35}"
    r"|\beyJ[A-Za-z0-9_-]{8,2048}\.[A-Za-z0-9_-]{8,4096}\.[A-Za-z0-9_-]{8,1024}",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_CONTROL = {"n": "\n", "t": "\t", "r": "\r", "b": " ", "f": " "}
_MOST_TOKENS = 16  # in a list of numbers; more of them are a prompt that no pattern can read
_LEAST_IBAN = 15


def redact(text: str) -> str:
    """Return `text` with marks such as [email] where something was taken out."""
    text = _SECRET.sub("[secret]", text)
    text = _NAMED.sub(r"\1[secret]", text)
    text = _EMAIL.sub("[email]", text)
    text = _IBAN.sub(_account, text)
    text = _CARD.sub(_card, text)
    return _PHONE.sub("[phone]", text)


def redact_body(body: str, *, is_cut: bool) -> str:
    """Redact a JSON body: each of its texts, as it reads without JSON's escapes."""
    if not is_cut:
        try:
            return msgspec.json.encode(_walk(msgspec.json.decode(body))).decode()
        except (msgspec.DecodeError, RecursionError):
            pass  # not JSON after all: what remains is its text
    return redact(_ESCAPE.sub(_unescape, body))


def _walk(value: object) -> object:
    match value:
        case str():
            return redact(value)
        case bool():
            return value
        case int():
            text = redact(str(value))
            return value if text == str(value) else text
        case list():
            if len(value) > _MOST_TOKENS and all(isinstance(each, int) for each in value):
                return f"[{len(value)} tokens]"
            return [_walk(each) for each in value]
        case dict():
            return {redact(str(name)): _field(str(name), each) for name, each in value.items()}
        case _:
            return value


def _field(name: str, value: object) -> object:
    """Redact a field; its own name may say that it is a secret."""
    if isinstance(value, str) and _NAMED.search(f"{name}: {value}"):
        return "[secret]"
    return _walk(value)


def _account(found: re.Match[str]) -> str:
    """Take out the longest beginning whose check digits are right: what follows may be the next word."""
    text = found.group()
    for end in range(len(text), _LEAST_IBAN - 1, -1):
        part = text[:end]
        if part[-1] != " " and (end == len(text) or text[end] == " ") and _is_iban(part.replace(" ", "")):
            return "[iban]" + text[end:]
    return text


def _is_iban(text: str) -> bool:
    return len(text) >= _LEAST_IBAN and int("".join(str(int(sign, 36)) for sign in text[4:] + text[:4])) % 97 == 1


def _card(found: re.Match[str]) -> str:
    digits = [int(sign) for sign in found.group() if sign.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    is_card = (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and len(set(digits)) > 1
    return "[card]" if is_card else found.group()


def _unescape(found: re.Match[str]) -> str:
    code, sign = found.group(1), found.group(2)
    return chr(int(code, 16)) if code is not None else _CONTROL.get(sign, sign)
