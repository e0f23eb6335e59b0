"""The continuous batching of `transformers` under the load that the engine serves: a part of bench/gpu.py.

Both run in this process, one after the other, with weights of the same shapes, the same prompts, and greedily to the
same number of tokens. The peer has its own best settings where it has found them by itself: flash attention if that is
installed, else paged SDPA; graphs and asynchronous batching as it decides.
"""

from __future__ import annotations

import gc
import importlib.util
import time

import torch
from gpu_models import Load, figures, llama, opened, prompts, serve
from gpu_report import DEVICE, KIND, Report

_ATTENTION = ("flash_attention_3", "flash_attention_2", "sdpa")
_MODULES = {"flash_attention_3": "flash_attn_interface", "flash_attention_2": "flash_attn"}


def transformers(report: Report) -> None:
    """Serve with the engine, then with the peer; return both and their ratio."""
    report.measure_limits()
    load = Load.of(report)
    size = "tiny" if report.is_tiny else "8b"
    what = f"{size} bf16, {load.clients} clients, {load.prompt} in, {load.output} out"
    ours: dict[str, object] = {}
    with report.row(f"engine, {what}", hangs_after=480.0):
        executor, _ = opened(size, "bf16", rows=load.clients, context=load.context, max_tokens=load.step_tokens)
        try:
            ours = serve(executor, load)
        finally:
            executor.shutdown()
        report.add(f"engine, {what}", **ours)
    del executor
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
    if importlib.util.find_spec("transformers") is None:
        report.add(
            f"transformers, {what}", skipped="transformers is not installed: pip install transformers accelerate"
        )
        return
    with report.row(f"transformers, {what}", hangs_after=480.0):
        theirs = serve_peer(report, size, load)
        report.add(f"transformers, {what}", **theirs)
        if ours:
            ratio = float(str(ours["out_tok_s"])) / float(str(theirs["out_tok_s"]))
            report.add("engine over transformers, tokens per second", ratio=ratio, target=3.0)


def serve_peer(report: Report, size: str, load: Load) -> dict[str, object]:
    """Serve every client once with `generate_batch`."""
    import transformers as peer

    config = llama(size)
    attention = next(
        name for name in _ATTENTION if name == "sdpa" or importlib.util.find_spec(_MODULES[name]) is not None
    )
    torch.manual_seed(0)
    settings = peer.LlamaConfig(
        hidden_size=config.hidden_size, intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads, head_dim=config.head_dim, vocab_size=config.vocab_size,
        max_position_embeddings=config.max_positions, tie_word_embeddings=False, dtype=KIND, use_cache=True,
    )  # fmt: skip
    settings._attn_implementation = f"paged|{attention}"
    with torch.device(DEVICE):
        model = peer.AutoModelForCausalLM.from_config(settings, dtype=KIND).eval()
    ending = peer.GenerationConfig(
        max_new_tokens=load.output, do_sample=False, eos_token_id=-1, pad_token_id=0, use_cache=True
    )
    wanted = prompts(load)
    started = time.perf_counter()
    # On a GPU it sizes itself by the memory that is free; on a CPU that would be all of the machine's.
    small = peer.ContinuousBatchingConfig(block_size=32, num_blocks=16, max_batch_tokens=64)
    how = {"continuous_batching_config": small} if report.is_tiny else {}
    with torch.no_grad():
        model.generate_batch(inputs=wanted[:2], generation_config=ending, record_timestamps=True, **how)  # warm
        found = model.generate_batch(inputs=wanted, generation_config=ending, record_timestamps=True, **how)
    outputs = list(found.values())
    if len(outputs) < len(wanted) or any(output.error for output in outputs):
        raise RuntimeError(f"{len(outputs)} of {len(wanted)} requests were answered; see the log above")
    times = [list(output.timestamps) for output in outputs]
    if min(map(len, times)) < load.output:
        raise RuntimeError(f"an answer has {min(map(len, times))} tokens of {load.output}")
    began = min(output.created_time for output in outputs)
    shown = {"version": peer.__version__, "attention": attention, "whole_s": time.perf_counter() - started}
    return figures(began, times, load) | shown
