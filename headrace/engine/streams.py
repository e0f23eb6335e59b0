"""From events to deltas: one `RequestStream` per live request, one slot per choice.

Owns: the text buffers of live requests. Used on the network thread only.
Invariant: for each choice exactly one delta has `finish`, nothing of that choice follows it, and the request's last
delta carries `usage`. A slot holds what its reader has not taken yet, merged into one delta, so a slow reader gets
fewer and longer deltas and the engine never waits. A slot that holds `max_unread` tokens asks for its sequence to be
paused until it has been emptied, so memory is bounded and nothing is computed that nobody reads.
"""

from __future__ import annotations

import asyncio

import msgspec

from headrace.core.cuts import Cut
from headrace.core.delta import Delta, FinishReason, PositionLogprobs, Usage
from headrace.core.request import Request, SeqId
from headrace.core.stats import Observer, RequestStats
from headrace.core.step import Sample, ScoredPosition
from headrace.engine.spelling import Spelling
from headrace.sched import SequenceEvent, SequenceTiming
from headrace.text import TextStream, Tokenizer


class _Choice:
    """One choice: its text buffer, and the slot its reader empties."""

    __slots__ = (
        "cut",
        "error",
        "finish",
        "index",
        "is_told",
        "last_token_s",
        "logprobs",
        "num_tokens",
        "prompt_logprobs",
        "stop_match",
        "stream",
        "text",
        "token_ids",
    )

    def __init__(self, index: int, stream: TextStream) -> None:
        self.index = index
        self.stream = stream
        self.num_tokens = 0
        self.last_token_s: float | None = None
        self.finish: FinishReason | None = None
        self.stop_match: str | int | None = None
        self.error: str | None = None
        self.cut: Cut | None = None
        self.is_told = False  # whether the reader has the last delta
        self.text = ""
        self.token_ids: list[int] = []
        self.logprobs: list[PositionLogprobs] = []
        self.prompt_logprobs: tuple[PositionLogprobs | None, ...] = ()

    @property
    def has_news(self) -> bool:
        """Say whether the slot has anything the reader lacks."""
        return not self.is_told and (self.finish is not None or bool(self.token_ids))

    def take(self) -> Delta:
        """Empty the slot into one delta."""
        delta = Delta(
            index=self.index,
            text=self.text,
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            prompt_logprobs=self.prompt_logprobs,
            finish=self.finish,
            stop_match=self.stop_match,
            error=self.error,
            cut=self.cut,
        )
        self.is_told = self.finish is not None
        self.text, self.prompt_logprobs = "", ()
        self.token_ids.clear()
        self.logprobs.clear()
        return delta


class RequestStream:
    """The choices of one request, fed by the engine's events and emptied by one reader."""

    def __init__(
        self,
        request: Request,
        first_id: int,
        tokenizer: Tokenizer,
        spelling: Spelling,
        observer: Observer | None,
        *,
        max_unread: int,
    ) -> None:
        self.request = request
        self.stuck_timer: asyncio.TimerHandle | None = None  # of the async facade, while anything is paused
        self._max_unread = max_unread
        self._paused: list[SeqId] = []
        self._first_id = first_id
        self._spelling = spelling
        self._observer = observer
        self._choices = [_Choice(index, _open_text(request, tokenizer)) for index in range(request.n)]
        self._num_live = request.n
        self._news = asyncio.Event()
        self._has_usage_told = False
        self._timings: dict[SeqId, SequenceTiming] = {}
        self._first_token_s: float | None = None
        self._finished_s = request.arrival_s
        # Written by the engine's facade: all of the request's sequences, what they were charged so far, and how long
        # they waited for their reader.
        self.all_ids = self.seq_ids
        self.engine_ns = 0
        self.prompt_ns = 0
        self.rent_ns = 0
        self.paused_since_s: float | None = None
        self.paused_s = 0.0

    @property
    def seq_ids(self) -> range:
        """Return the ids of all choices' sequences, in index order."""
        return range(self._first_id, self._first_id + len(self._choices))

    @property
    def live_ids(self) -> list[SeqId]:
        """Return the ids of the sequences whose choices have not ended."""
        return [SeqId(self._first_id + choice.index) for choice in self._choices if choice.finish is None]

    @property
    def is_exhausted(self) -> bool:
        """Say whether the reader has everything."""
        return self._has_usage_told

    def is_full(self, seq_id: SeqId) -> bool:
        """Say whether a choice has just filled its slot; its sequence should be paused until `release` names it."""
        choice = self._choices[seq_id - self._first_id]
        if len(choice.token_ids) < self._max_unread or choice.finish is not None or seq_id in self._paused:
            return False
        self._paused.append(seq_id)
        return True

    def release(self) -> list[SeqId]:
        """Return the sequences that were paused, once the slots are empty."""
        paused, self._paused = self._paused, []
        return paused

    async def wait(self) -> None:
        """Wait until `take` has something to give."""
        await self._news.wait()

    def wake(self) -> None:
        """Let the reader go on."""
        self._news.set()

    def take(self) -> list[Delta]:
        """Empty the slots: at most one delta per choice; the request's last one carries the usage."""
        self._news.clear()
        deltas = [choice.take() for choice in self._choices if choice.has_news]
        if not self._num_live and not self._has_usage_told:
            self._has_usage_told = True
            deltas[-1] = msgspec.structs.replace(deltas[-1], usage=self._usage())
        return deltas

    def accept(self, event: SequenceEvent, now: float, *, cut: Cut | None = None) -> bool:
        """Take in an event; True if text has ended a choice whose sequence is still running and should be aborted.

        cut  what the engine ends it for, if it does
        """
        choice = self._choices[event.seq_id - self._first_id]
        if choice.finish is not None:
            return False  # the sequence ran on a little before the abort reached it
        if event.timing is not None:
            self._timings[event.seq_id] = event.timing
        if event.scored:
            choice.prompt_logprobs = (None, *(self._spell_scored(position) for position in event.scored))
        if event.sample is not None:
            self._accept_sample(choice, event.sample, now)
            if event.stop_token is None or self.request.stop.include_stop_text:
                piece = choice.stream.push(event.sample.token_id)
                choice.text += piece.text
                if piece.stop_match is not None:
                    self._end(choice, FinishReason.STOP, piece.stop_match, None, now)
                    return event.finish is None
        for token_id in event.tokens:
            choice.num_tokens += 1
            choice.token_ids.append(token_id)
            if token_id != event.stop_token or self.request.stop.include_stop_text:
                piece = choice.stream.push(token_id)
                choice.text += piece.text
                if piece.stop_match is not None:
                    self._end(choice, FinishReason.STOP, piece.stop_match, None, now)
                    return False
        if event.finish is not None:
            choice.text += choice.stream.finish()
            if choice.stream.stop_match is not None:  # completed by a character that was cut off
                self._end(choice, FinishReason.STOP, choice.stream.stop_match, None, now)
            else:
                choice.cut = cut
                self._end(choice, event.finish, event.stop_token, event.error, now)
        return False

    def fail(self, seq_id: SeqId, error: str, now: float, *, cut: Cut | None = None) -> None:
        """End a choice because its text cannot be made, or because its engine ends."""
        choice = self._choices[seq_id - self._first_id]
        if choice.finish is None:
            choice.cut = cut
            self._end(choice, FinishReason.ERROR, None, error, now)

    def abandon(self, now: float) -> None:
        """End what is still live because the reader has gone."""
        for choice in self._choices:
            if choice.finish is None:
                self._end(choice, FinishReason.ABORT, None, None, now)

    def stats(self) -> RequestStats:
        """Sum the request up, once all choices have ended."""
        starts = [t.first_scheduled_s for t in self._timings.values() if t.first_scheduled_s is not None]
        usage = self._usage()
        late = next((t.late for t in self._timings.values() if t.late is not None), None)
        return RequestStats(
            request_id=self.request.request_id,
            model=self.request.model,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
            finishes=tuple(choice.finish for choice in self._choices if choice.finish is not None),
            arrival_s=self.request.arrival_s,
            first_scheduled_s=min(starts, default=None),
            first_token_s=self._first_token_s,
            finished_s=self._finished_s,
            num_preemptions=sum(t.num_preemptions for t in self._timings.values()),
            tenant=self.request.tenant,
            engine_ns=usage.engine_ns,
            prompt_ns=self.prompt_ns,
            rent_ns=self.rent_ns,
            paused_s=self.paused_s,
            longest_tokens=max(choice.num_tokens for choice in self._choices),
            max_tokens=self.request.stop.max_tokens,
            late_places=() if late is None else late.places,
            late_s=0.0 if late is None else late.waited_s,
        )

    def _accept_sample(self, choice: _Choice, sample: Sample, now: float) -> None:
        choice.num_tokens += 1
        choice.token_ids.append(sample.token_id)
        if sample.logprob is not None:
            choice.logprobs.append(self._spell(sample.token_id, sample.logprob, sample.top))
        if self._first_token_s is None:
            self._first_token_s = now
            if self._observer is not None:
                self._observer.on_first_token(now - self.request.arrival_s)
        elif self._observer is not None and choice.last_token_s is not None:
            self._observer.on_next_token(now - choice.last_token_s)
        choice.last_token_s = now

    def _end(
        self, choice: _Choice, finish: FinishReason, stop_match: str | int | None, error: str | None, now: float
    ) -> None:
        choice.finish, choice.stop_match, choice.error = finish, stop_match, error
        self._num_live -= 1
        self._finished_s = now

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=len(self.request.prompt),
            completion_tokens=sum(choice.num_tokens for choice in self._choices),
            # What one choice computed and the others shared was computed.
            cached_tokens=min((timing.num_cached for timing in self._timings.values()), default=0),
            engine_ns=self.engine_ns,
        )

    def _spell(self, token_id: int, logprob: float, top: tuple[tuple[int, float], ...]) -> PositionLogprobs:
        spell = self._spelling.token
        return PositionLogprobs(chosen=spell(token_id, logprob), top=tuple(spell(other, value) for other, value in top))

    def _spell_scored(self, position: ScoredPosition) -> PositionLogprobs:
        return self._spell(position.token_id, position.logprob, position.top)


def _open_text(request: Request, tokenizer: Tokenizer) -> TextStream:
    return TextStream(
        tokenizer,
        skip_special=request.skip_special_tokens,
        stop_strings=request.stop.stop_strings,
        include_stop_text=request.stop.include_stop_text,
    )
