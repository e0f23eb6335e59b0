"""Make `text_vectors.json`: encodings by llama.cpp and by SentencePiece, which share no code with this package.

Needs what the tests do not: `pip install xllamacpp gguf sentencepiece`. Run with a folder that holds both real models:

    python tests/golden/make_text_vectors.py smollm2.gguf gemma3.gguf
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
PORT = 18_977

STRINGS = [
    *("", " ", "  ", "   ", "a", " a", "  a", "a ", "a  ", "Hello world", "Hello   world", "Hello    world     !"),
    *("\n", "\n\n", "\r\n\r\nx", "\t\tx", " \n\n x", "x \n y", "a\n b\n  c\n   d\n    e", "tail   \n\n\n   head"),
    *("I'm you're they'll we've he'd it's don't I'LL 'tis ''s", "rock'n'roll O'Neill 'S 'LL", "Don’t “do” that…"),
    *("123", "1234567890", "3.14159", "1,000,000", "v1.2.3-rc4", "x=1;y=22", "٣٤٥ १२३ Ⅷ ² ½", "1 2 3  4   5"),
    *(
        "日本語のテキスト",
        "你好，世界！",
        "안녕하세요 세계",
        "Привет, мир",
        "שלום עולם",
        "مرحبا بالعالم",
        "ภาษาไทย",
        "Γειά σου",
    ),
    *(
        "🦙🦙 🚀",
        "👨‍👩‍👧‍👦 family",
        "🇫🇷🇯🇵",
        "naïve façade Straße",
        "ﬁ ﬂ",
        "𝒜𝓃𝒸",
        "①②③",
        "ＡＢＣ１２３",
        "한글과 English 混合 123",
    ),
    *("def f(x):\n    return x ** 2\n", '{ printf("%d\\n", i++); }', "<p>Hi &amp; bye</p>", '{"a": [1, null]}'),
    *("http://example.com/path?q=1&r=%20#frag", "user@example.com", "C:\\Users\\x", "$100 €50 £20", "50% off!!! ???"),
    *("...", "—–-_", "========", "a/b\\c|d", "snake_case CamelCase ALLCAPS", "aaaaaaaaaaaaaaaaaaaaaaa", "ababababab"),
    *("nbsp\u00a0here\u00a0\u00a0two", "\u3000全角　", "\u200bzero\u200bwidth", "\x00null\x01", "1\t2\n", " \t \t \n"),
    *(" " * 40 + "x", "\n" * 33, "\t" * 33, "x^2 + y^2 = z^2; ∑∫√∞ ≠ ≤", "H₂O 10⁻³", "The quick brown fox jumps."),
]
SPECIAL = [
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
    *("text<|im_end|>text", "<|im_end|> <|im_end|>", "  <|endoftext|>  ", "<bos>Hi<eos>", "<|im_", "<|im_end"),
    "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n",
    *("<unk>", "<pad> <mask> <unused5>", "<table><tr><td>1</td></tr></table>", "<0x41> <0xE2>"),
]
MARKS = ["cafe\u0301 A\u030a", "नमस्ते दुनिया", "\u0627\u0644\u0644\u0651\u064e\u0647"]  # llama.cpp composes nothing
PRES = ("default", "gpt-2", "llama-bpe", "qwen2", "deepseek-llm", "deepseek-coder", "deepseek-v3", "falcon", "tekken")
PRES += ("gpt-4o", "bloom", "viking", "seed-coder", "qwen35", "stablelm2")
CHUNKED = [text for text in STRINGS if len(text) < 60][::2]


def serve_and_ask(model: Path, texts: list[str]) -> list[list[int]]:
    """Encode `texts` with llama.cpp in a process of its own: it cannot unload a model."""
    command = [sys.executable, __file__, "--ask", str(model)]
    done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def ask(model: str) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.port, params.verbosity, params.warmup = model, 64, PORT, 0, False
    server = xllamacpp.Server(params)  # stops when it is collected
    url = server.listening_address.rstrip("/") + "/tokenize"
    found = []
    for text in json.load(sys.stdin):
        body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
        request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
        found.append(json.load(urllib.request.urlopen(request))["tokens"])
    print(json.dumps(found), flush=True)
    os._exit(0)  # the server's threads do not end by themselves


def by_pre(model: Path, pre: str, directory: Path) -> list[list[int]]:
    """Encode with the vocabulary of `model` cut in another way."""
    changed = directory / "changed.gguf"
    tool = Path(sys.executable).with_name("gguf-new-metadata")
    subprocess.run([tool, "--force", "--pre-tokenizer", pre, model, changed], check=True, capture_output=True)
    return serve_and_ask(changed, CHUNKED)


def small_sentencepiece(directory: Path, *, dummy_prefix: bool) -> dict[str, object]:
    """Train a small BPE model on the strings above and encode them with it."""
    import sentencepiece

    corpus = directory / "corpus.txt"
    corpus.write_text("\n".join([*STRINGS, *SPECIAL, Path(__file__).read_text()]).replace("\x00", ""))
    prefix = str(directory / "small")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=prefix, model_type="bpe", vocab_size=600, byte_fallback=True,
        normalization_rule_name="identity", add_dummy_prefix=dummy_prefix, remove_extra_whitespaces=False,
        user_defined_symbols=[] if dummy_prefix else ["<tool>", "<tool>x", "\u2581\u2581"], minloglevel=2,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_file=prefix + ".model")
    size = processor.get_piece_size()

    def type_of(i: int) -> int:
        if processor.is_unknown(i):
            return 2
        if processor.is_control(i):
            return 3
        if processor.is_byte(i):
            return 6
        return 4 if processor.id_to_piece(i) in ("<tool>", "<tool>x", "\u2581\u2581") else 1

    texts = [text for text in [*STRINGS, "a<tool>xy <tool> z    <tool>"] if "\x00" not in text]
    return {
        "pieces": [processor.id_to_piece(i) for i in range(size)],
        "scores": [processor.get_score(i) for i in range(size)],
        "types": [type_of(i) for i in range(size)],
        "texts": texts,
        "ids": processor.encode(texts),
    }


def main() -> None:
    smollm2, gemma3 = map(Path, sys.argv[1:3])
    texts = [*STRINGS, *SPECIAL, *MARKS]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        vectors = {
            "texts": texts,
            "models": {"smollm2-135m": serve_and_ask(smollm2, texts), "gemma3-270m": serve_and_ask(gemma3, texts)},
            "pre_texts": CHUNKED,
            "pre": {pre: by_pre(smollm2, pre, directory) for pre in PRES},
            "sentencepiece": {
                "prefixed": small_sentencepiece(directory, dummy_prefix=True),
                "bare": small_sentencepiece(directory, dummy_prefix=False),
            },
        }
    (HERE / "text_vectors.json").write_text(json.dumps(vectors, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    ask(sys.argv[2]) if sys.argv[1] == "--ask" else main()
