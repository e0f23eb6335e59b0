"""llama.cpp through llama-cpp-python's low-level API: one llama_decode per step for the whole batch, greedy.

Runs in the peer's virtual environment. Config: {"model": FILE.gguf, "threads": n, "quantize": "Q4_0" | "Q8_0" | null,
"scratch": DIR, "context": tokens per sequence, "sequences": most sequences at a time}.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

import llama_cpp
import numpy as np
import runner

_QUANTIZATIONS = {"Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0}


class LlamaCpp:
    """One model with one unified KV cache."""

    def __init__(self, config: dict[str, Any]) -> None:
        llama_cpp.llama_backend_init()
        path = _requantized(config) if config.get("quantize") else config["model"]
        model_params = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), model_params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = config["context"] * config["sequences"]
        params.n_seq_max = config["sequences"]
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = config["threads"]
        params.kv_unified = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)
        self._batch = llama_cpp.llama_batch_init(512, 0, 1)
        self.version = f"llama-cpp-python {llama_cpp.__version__}"
        features = llama_cpp.llama_print_system_info().decode()
        self.settings = f"{config.get('quantize') or 'as stored'}, {config['threads']} threads; {features}"

    def generate(self, prompts: list[list[int]], output_tokens: int) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        tokens = [self._prefill(seq, prompt) for seq, prompt in enumerate(prompts)]
        lengths = [len(prompt) for prompt in prompts]
        for _ in range(output_tokens - 1):
            self._batch.n_tokens = 0
            for seq, token in enumerate(tokens):
                self._add(token, lengths[seq], seq, True)
                lengths[seq] += 1
            self._decode()
            tokens = [int(self._row(i).argmax()) for i in range(len(tokens))]

    def logits(self, chunks: list[list[int]], path: str) -> None:
        rows = []
        for chunk in chunks:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
            self._batch.n_tokens = 0
            for position, token in enumerate(chunk):
                self._add(token, position, 0, True)
            self._decode()
            rows.append(np.stack([self._row(i).copy() for i in range(len(chunk))]))
        np.save(path, np.concatenate(rows).astype(np.float32))

    def _prefill(self, seq: int, prompt: list[int]) -> int:
        for start in range(0, len(prompt), 512):
            self._batch.n_tokens = 0
            for position in range(start, min(start + 512, len(prompt))):
                self._add(prompt[position], position, seq, position == len(prompt) - 1)
            self._decode()
        return int(self._row(self._batch.n_tokens - 1).argmax())

    def _add(self, token: int, position: int, seq: int, wants_logits: bool) -> None:
        i = self._batch.n_tokens
        self._batch.token[i], self._batch.pos[i] = token, position
        self._batch.n_seq_id[i], self._batch.seq_id[i][0] = 1, seq
        self._batch.logits[i] = wants_logits
        self._batch.n_tokens = i + 1

    def _decode(self) -> None:
        status = llama_cpp.llama_decode(self._context, self._batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")

    def _row(self, i: int) -> np.ndarray:
        pointer = llama_cpp.llama_get_logits_ith(self._context, i)
        return np.ctypeslib.as_array(pointer, shape=(self._vocab_size,))


def _requantized(config: dict[str, Any]) -> str:
    kind = config["quantize"]
    target = os.path.join(config["scratch"], f"{os.path.basename(config['model'])}.{kind}.gguf")
    if not os.path.exists(target):
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.allow_requantize, params.nthread = _QUANTIZATIONS[kind], True, config["threads"]
        status = llama_cpp.llama_model_quantize(config["model"].encode(), target.encode(), ctypes.byref(params))
        if status != 0:
            raise RuntimeError(f"llama_model_quantize returned {status}")
    return target


if __name__ == "__main__":
    runner.main(LlamaCpp)
