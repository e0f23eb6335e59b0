from __future__ import annotations

import pytest

from headrace.testing import ByteTokenizer


def test_text_comes_back_whole() -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode("wäter", add_special=True)
    assert ids[0] == tokenizer.bos_id
    assert tokenizer.decode(ids) == "wäter"
    assert b"".join(map(tokenizer.token_bytes, ids)) == "wäter".encode()


def test_special_tokens_show_only_when_asked_for() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode([256, 65, 257], skip_special=False) == "<bos>A<eos>"
    assert tokenizer.decode([256, 65, 257]) == "A"


def test_an_id_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="token id 258 is outside"):
        ByteTokenizer().token_bytes(258)
