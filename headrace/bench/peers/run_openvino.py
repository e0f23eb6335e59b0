"""OpenVINO GenAI on the CPU: its continuous-batching pipeline for speed, its exported model for logits.

Runs in the peer's virtual environment. Config: {"model": exported IR directory or FILE.gguf, "threads": n,
"context": tokens per sequence, "sequences": most sequences at a time, "kv_gib": KV pool}.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import openvino
import openvino_genai
import runner


class OpenVino:
    """One pipeline with paged KV; prefix caching stays off so that every prompt is computed."""

    def __init__(self, config: dict[str, Any]) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_seqs = config["sequences"]
        scheduler.max_num_batched_tokens = max(512, config["sequences"])
        scheduler.cache_size = config["kv_gib"]
        scheduler.enable_prefix_caching = False
        properties = {"INFERENCE_NUM_THREADS": config["threads"], **config.get("properties", {})}
        self._path = config["model"]
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(self._path, scheduler, "CPU", properties)
        self._scorer: openvino.CompiledModel | None = None
        self.version = f"openvino-genai {openvino_genai.__version__}"
        self.settings = f"{os.path.basename(self._path)}, {config['threads']} threads, {config.get('properties', {})}"

    def generate(self, prompts: list[list[int]], output_tokens: int) -> None:
        options = openvino_genai.GenerationConfig()
        options.max_new_tokens, options.ignore_eos, options.do_sample = output_tokens, True, False
        inputs = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        results = self._pipeline.generate(inputs, [options] * len(inputs))
        for result in results:
            if len(result.m_generation_ids[0]) != output_tokens:
                raise RuntimeError(f"{len(result.m_generation_ids[0])} tokens came, {output_tokens} were asked for")

    def logits(self, chunks: list[list[int]], path: str) -> None:
        if not os.path.isdir(self._path):
            raise RuntimeError("logits need an exported model directory")
        if self._scorer is None:
            core = openvino.Core()
            self._scorer = core.compile_model(os.path.join(self._path, "openvino_model.xml"), "CPU")
        request = self._scorer.create_infer_request()
        rows = []
        for chunk in chunks:
            request.reset_state()
            ids = np.array([chunk], dtype=np.int64)
            feed = {
                "input_ids": ids,
                "attention_mask": np.ones_like(ids),
                "position_ids": np.arange(len(chunk), dtype=np.int64)[None],
                "beam_idx": np.zeros(1, dtype=np.int32),
            }
            names = {name for port in self._scorer.inputs for name in port.get_names()}
            request.infer({name: value for name, value in feed.items() if name in names})
            rows.append(request.get_tensor("logits").data[0].astype(np.float32))
        np.save(path, np.concatenate(rows))


if __name__ == "__main__":
    runner.main(OpenVino)
