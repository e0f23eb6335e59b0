"""From a request to its sequences: one for each choice that is drawn, or for each beam that searches.

Owns nothing. Called by the engine's facade, which numbers sequences.
Choice i draws with `derive_seed(seed, i)`, so choice 0 of n=4 is the answer of n=1. Only choice 0 scores the prompt.
Of the beams, only the first reads the prompt; the first `n` of them bear the answers in the end.
"""

from __future__ import annotations

import msgspec

from headrace.core.request import Request, SamplingParams, SeqId
from headrace.sampling import derive_seed
from headrace.sched.beams import BeamGroup, num_offered
from headrace.sched.sequence import Sequence, SequenceStatus, Urgency


def sequences_of(request: Request, first_id: int) -> list[Sequence]:
    """Make the sequences of a request, with ids first_id, first_id+1, …."""
    urgency = Urgency(
        tenant=request.tenant,
        priority=request.priority,
        is_background=request.is_background,
        deadline_s=None if request.deadline_s is None else request.arrival_s + request.deadline_s,
    )
    beam = request.beam
    sequences = [
        Sequence(
            SeqId(first_id + index),
            request.prompt,
            _sampling(request, index),
            max_tokens=request.stop.max_tokens,
            stop_token_ids=request.stop.stop_token_ids,
            prompt_logprobs=request.prompt_logprobs if index == 0 else None,
            namespace=request.namespace or request.tenant,
            pin_s=request.pin_s if index == 0 else 0.0,
            reach=request.reach,
            urgency=urgency,
        )
        for index in range(request.n if beam is None else beam.width)
    ]
    if beam is not None:
        group = BeamGroup(beam, tuple(sequences), request.n)
        for sequence in sequences:
            sequence.beams = group
        for sequence in sequences[1:]:
            sequence.status = SequenceStatus.PARKED
            sequence.tokens = []
    return sequences


def _sampling(request: Request, index: int) -> SamplingParams:
    sampling, beam = request.sampling, request.beam
    if beam is None:
        return msgspec.structs.replace(sampling, seed=derive_seed(sampling.seed, index))
    offered = num_offered(beam.width, len(request.stop.stop_token_ids))
    return SamplingParams(temperature=0.0, logprobs=offered, min_tokens=sampling.min_tokens)
