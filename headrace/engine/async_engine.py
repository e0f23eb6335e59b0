"""The engine as an `Upstream`: requests in, deltas out, on the network's event loop.

Owns: the streams of live requests and the next sequence id. Everything here runs on one event loop; the engine thread
reaches it by one `call_soon_threadsafe` per step.
Invariant: whoever stops reading, in whatever way, has its sequences aborted and its blocks freed. Who reads too slowly
has its sequences paused, and nobody else's; who has taken nothing for `slow_reader_s` seconds, or for the grace period
it was promised, counts as gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

import msgspec

from headrace.core.cuts import Cut
from headrace.core.delta import Delta, FinishReason
from headrace.core.errors import EngineBusy, EngineDead, HeadraceError, ServerDraining, WeightsSwapped
from headrace.core.protocols import Clock
from headrace.core.request import Knock, Request, RequestId, SeqId
from headrace.core.stats import EngineSnapshot, EngineTime, Observer, RequestStats
from headrace.core.why import ChoiceNote, Explanation, RequestState
from headrace.econ import FREE, AttributionPolicy, RentTerms
from headrace.engine.admission import check_request
from headrace.engine.best_of import generate_best
from headrace.engine.engine import Engine, StepReport
from headrace.engine.explaining import Memory, explain_choice, in_inbox
from headrace.engine.health import EngineFacts
from headrace.engine.meter import StepMeter
from headrace.engine.spelling import Spelling
from headrace.engine.stages import tell_stages
from headrace.engine.streams import RequestStream
from headrace.sched import SequenceEvent, Urgency, sequences_of
from headrace.text import Tokenizer

_log = logging.getLogger(__name__)
_ANSWER_S = 5.0  # that the engine gets to say how a request stands


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """Tokens of a choice that may wait for its reader, and seconds that a reader may leave them there."""

    max_unread: int = 1024
    slow_reader_s: float = 60.0


class AsyncEngine:
    """Serves one model on one event loop. Implements `core.protocols.Upstream`.

    vocab_size  tokens the model has logits for; prompts, biases and stop tokens are checked against it
    began_s     when loading began, for the account of the engine's time; None: now
    policy      who pays for what a step costs however many share it
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        clock: Clock,
        *,
        vocab_size: int,
        observer: Observer | None = None,
        limits: StreamLimits | None = None,
        began_s: float | None = None,
        policy: AttributionPolicy = AttributionPolicy.EQUAL,
        rent: RentTerms = FREE,
    ) -> None:
        self._limits = limits or StreamLimits()
        self._engine = engine
        self._tokenizer = tokenizer
        self._clock = clock
        self._vocab_size = vocab_size
        self._observer = observer
        self._spelling = Spelling(tokenizer)
        self._streams: dict[SeqId, RequestStream] = {}
        self._by_request: dict[RequestId, list[RequestStream]] = {}
        self._next_id = 0
        self._memory = Memory(clock)
        self._closing: Cut | None = None  # why it takes no more requests
        self._drain_s = 0.0
        self._warm_s: float | None = None
        self._fatal: str | None = None
        self._tell_finished: Callable[[RequestStats], None] | None = None
        self._meter = StepMeter(clock.now() if began_s is None else began_s, engine.step_costs, policy, rent)
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    async def start(self) -> float:
        """Start the engine thread and wait until it is warm; return the seconds that took. Raises EngineDead."""
        loop = asyncio.get_running_loop()

        def deliver(report: StepReport) -> None:
            # A closed loop has no readers left to tell.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._receive, report)

        self._engine.start(deliver)
        self._warm_s = await asyncio.wrap_future(self._engine.ready)
        self._meter.note_ready(self._clock.now())
        return self._warm_s

    async def generate(self, request: Request) -> AsyncGenerator[Delta, None]:
        """Stream the answer; closing the iterator early aborts the work.

        The first step of the iterator raises InvalidRequest, PromptTooLong, Overloaded or what a `Cut` says before
        anything has been computed. Later failures arrive as a delta with `finish` ERROR.
        """
        if request.best_of is not None and request.best_of > request.n:
            async with aclosing(generate_best(request, self.generate)) as deltas:
                async for delta in deltas:
                    yield delta
            return
        stream = self._open(request)
        try:
            while not stream.is_exhausted:
                await stream.wait()
                taken = stream.take()
                if stream.stuck_timer is not None:
                    self._resume(stream)
                for delta in taken:
                    yield delta
        finally:
            self._close(stream)

    def check_room(self, knock: Knock) -> None:
        """Refuse what would be refused whatever its prompt, so that a refusal costs no template and no tokens.

        Raises Overloaded, DeadlineUnreachable or what a `Cut` says.
        """
        deadline_s = None if knock.deadline_s is None else knock.arrival_s + knock.deadline_s
        urgency = Urgency(
            tenant=knock.tenant,
            priority=knock.priority,
            is_background=knock.is_background,
            deadline_s=deadline_s,
        )
        try:
            self._check_open()
            self._engine.check_room(urgency)
        except HeadraceError as error:
            self._note_refused(knock, error)
            raise

    async def wait_dead(self) -> None:
        """Wait for the engine to end; raises EngineDead if it failed."""
        await asyncio.shield(asyncio.wrap_future(self._engine.dead))

    async def stop(self, drain_s: float = 0.0, *, cut: Cut = Cut.DRAIN, had_s: float = 0.0) -> None:
        """Refuse new requests, let the live ones go on for `drain_s` seconds, cut the rest off. Idempotent.

        cut    why; the first that is given stands
        had_s  seconds that they have had already
        """
        if self._closing is None:
            self._closing, self._drain_s = cut, had_s + drain_s
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._is_empty.wait(), drain_s)
        self._engine.stop()
        with contextlib.suppress(EngineDead):
            await self.wait_dead()

    def abort(self, request_id: RequestId) -> bool:
        """End the requests of exactly this id as ABORT; False if there is none. Idempotent.

        Their readers get the deltas made so far and then the end; the blocks are free after the step in flight.
        """
        streams = self._by_request.get(request_id, ())
        for stream in streams:
            if live_ids := stream.live_ids:
                self._engine.abort(live_ids)
        return bool(streams)

    def give_up(self, reason: str) -> None:
        """End every live request as ERROR without waiting for the engine thread, which is stuck. Idempotent."""
        self._closing, self._fatal = self._closing or Cut.DEAD, self._fatal or reason
        cut = Cut.SWAP if self._closing is Cut.SWAP else Cut.DEAD
        now = self._clock.now()
        for seq_id, stream in self._streams.items():
            stream.fail(seq_id, self._fatal, now, cut=cut)
            stream.wake()

    async def explain(self, request_id: RequestId) -> Explanation | None:
        """Say where a request is and why; None if it is not live and has not ended lately."""
        streams = self._by_request.get(request_id)
        now = self._clock.now()
        if not streams:
            remembered = self._memory.find(request_id)
            if remembered is None:
                return None
            arrival_s, explanation = remembered
            return msgspec.structs.replace(explanation, age_s=now - arrival_s)
        choices: list[ChoiceNote] = []
        request = streams[0].request
        for stream in streams:
            choices += await self._explain_live(stream, len(choices))
        # What most speaks for waiting comes first: one choice that waits makes the request wait.
        first = min(choices, key=lambda choice: list(RequestState).index(choice.state))
        return Explanation(
            id=request_id,
            model=request.model,
            state=first.state,
            sentence=first.sentence,
            age_s=now - request.arrival_s,
            prompt_tokens=len(request.prompt),
            choices=choices,
        )

    async def _explain_live(self, stream: RequestStream, first_index: int) -> list[ChoiceNote]:
        name, arrival_s = self._namer(stream.request), stream.request.arrival_s
        live = set(stream.live_ids)
        try:
            asked = asyncio.wrap_future(self._engine.situations(live))
            situations = await asyncio.wait_for(asked, _ANSWER_S)
        except TimeoutError:
            raise EngineBusy(f"the engine has been in one step for {_ANSWER_S:g} s; ask again") from None
        choices: list[ChoiceNote] = []
        for index, seq_id in enumerate(map(SeqId, stream.seq_ids), first_index):
            notes = self._memory.preemptions(seq_id, arrival_s, name)
            if (situation := situations.get(seq_id)) is not None:
                choices.append(explain_choice(index, situation, notes, name))
            elif seq_id in live:
                choices.append(in_inbox(index))
            else:
                choices.append(ChoiceNote(index=index, state=RequestState.FINISHED, sentence="It has ended."))
        return choices

    def _namer(self, request: Request) -> Callable[[SeqId], str | None]:
        """Return what tells a sequence's request to those of the same tenant."""

        def name(seq_id: SeqId) -> str | None:
            other = self._streams.get(seq_id)
            return other.request.request_id if other is not None and other.request.tenant == request.tenant else None

        return name

    def snapshot(self) -> EngineSnapshot:
        """Return the engine's counts of this moment."""
        return msgspec.structs.replace(self._engine.snapshot(), time=self.time())

    def bill_to(self, tell_finished: Callable[[RequestStats], None]) -> None:
        """Tell whoever keeps accounts of every request that ends, before its reader knows that it is closed."""
        self._tell_finished = tell_finished

    def time(self) -> EngineTime:
        """Return where the engine's time went, up to now if nobody is being served, else to the last step's end."""
        if not self._streams and self._warm_s is not None:
            self._meter.note_idle(self._clock.now())
        return self._meter.time()

    def facts(self) -> EngineFacts:
        """Return what health is told from; any thread."""
        return EngineFacts(
            snapshot=self._engine.snapshot(),
            live=self._engine.live(),
            request_id=self._request_id,
            warm_s=self._warm_s,
            is_draining=self._closing is not None,
            fatal=self._fatal or self._engine.failure(),
        )

    def _request_id(self, seq_id: SeqId) -> RequestId | None:
        stream = self._streams.get(seq_id)
        return None if stream is None else stream.request.request_id

    def _open(self, request: Request) -> RequestStream:
        """Check a request, hand its sequences to the engine and register its stream."""
        try:
            self._check_open()
            check_request(request, self._vocab_size)
            stream = RequestStream(
                request,
                self._next_id,
                self._tokenizer,
                self._spelling,
                self._observer,
                max_unread=self._limits.max_unread,
            )
            sequences = sequences_of(request, self._next_id)
            self._engine.submit(sequences)
        except HeadraceError as error:
            self._note_refused(request, error)
            raise
        stream.all_ids = range(self._next_id, self._next_id + len(sequences))
        self._meter.open(stream.all_ids)
        self._next_id += len(sequences)
        for seq_id in stream.seq_ids:
            self._streams[SeqId(seq_id)] = stream
        self._by_request.setdefault(request.request_id, []).append(stream)
        self._is_empty.clear()
        return stream

    def _check_open(self) -> None:
        if self._closing is Cut.SWAP:
            raise WeightsSwapped("the model's weights were swapped while this request was on its way; send it again")
        if (failure := self._fatal or self._engine.failure()) is not None:
            raise EngineDead(failure)
        if self._closing is not None:
            raise ServerDraining("the server is shutting down; send the request again once it is back, or elsewhere")

    def _cut_off(self, event: SequenceEvent, request: Request) -> tuple[SequenceEvent, Cut]:
        """Return the end of what was live when the engine ended, as its caller is told, and what it is for."""
        if event.error is not None:
            return event, Cut.DEAD
        cut = self._closing or Cut.DRAIN
        if cut is Cut.SWAP:
            why = f"the weights of '{request.model}' were swapped", "send it again, the new weights answer"
        else:
            why = "the server is shutting down", "send it again once the server is back, or elsewhere"
        limit = f"running requests had {self._drain_s:g} s to end, this one did not"
        told = f"{why[0]}; {limit}; {why[1]}"
        return msgspec.structs.replace(event, finish=FinishReason.ERROR, error=told), cut

    def _note_refused(self, request: Request | Knock, error: HeadraceError) -> None:
        self._memory.note_refused(request, error)
        if self._observer is not None:
            self._observer.on_refused(error)

    def _close(self, stream: RequestStream) -> None:
        """Forget a stream, and abort what it has left running."""
        for seq_id in stream.seq_ids:
            del self._streams[SeqId(seq_id)]
        stream.prompt_ns = self._meter.read_prompt(stream.all_ids.start)
        stream.rent_ns = self._meter.read_rent(stream.all_ids.start)
        stream.engine_ns = self._meter.close(stream.all_ids)
        same_id = self._by_request[stream.request.request_id]
        same_id.remove(stream)
        if not same_id:
            del self._by_request[stream.request.request_id]
        if stream.stuck_timer is not None:
            stream.stuck_timer.cancel()
        if stream.paused_since_s is not None:
            stream.paused_s += self._clock.now() - stream.paused_since_s
        if live_ids := stream.live_ids:
            self._engine.abort(live_ids)
            stream.abandon(self._clock.now())
        stats = stream.stats()
        if stream.request.span is not None:
            tell_stages(stream.request.span, stream.request, stats)
        self._memory.note_ended(stream.request, stats, map(SeqId, stream.seq_ids), self._namer(stream.request))
        if self._observer is not None:
            self._observer.on_finished(stats)
        if self._tell_finished is not None:
            self._tell_finished(stats)
        if not self._streams:
            self._is_empty.set()

    def _pause(self, seq_ids: list[SeqId]) -> None:
        """Stop computing what is not being read, and give its reader a last chance to come back."""
        self._engine.pause(seq_ids)
        loop = asyncio.get_running_loop()
        for seq_id in seq_ids:
            stream = self._streams[seq_id]
            if stream.stuck_timer is None:
                stream.paused_since_s = self._clock.now()
                stream.stuck_timer = loop.call_later(self._patience_s(stream), self._abandon, stream)

    def _resume(self, stream: RequestStream) -> None:
        assert stream.stuck_timer is not None
        stream.stuck_timer.cancel()
        stream.stuck_timer = None
        if stream.paused_since_s is not None:
            stream.paused_s += self._clock.now() - stream.paused_since_s
            stream.paused_since_s = None
        self._engine.resume(stream.release())

    def _patience_s(self, stream: RequestStream) -> float:
        """Return for how long a stream may stay unread: one whose reader may be away gets at least that long."""
        return max(self._limits.slow_reader_s, stream.request.grace_s)

    def _abandon(self, stream: RequestStream) -> None:
        """End what nobody has read for too long."""
        request_id, seconds = stream.request.request_id, self._patience_s(stream)
        fields = {"request_id": request_id}  # a timer has no request of its own
        _log.warning(
            "nobody has read request %s for %.0f s; it is aborted", request_id, seconds, extra={"fields": fields}
        )
        self._engine.abort(stream.live_ids)

    def _receive(self, report: StepReport) -> None:
        """Hand a step's events to their streams; the only loop over the batch on the network thread."""
        if report.step is not None:
            self._meter.on_step(report.rows, report.step.began_s, report.now, report.num_resting, report.owed)
        self._meter.note_cached(report.num_cached)
        for decision in report.preempted:
            if decision.seq_id in self._streams:
                self._memory.note_preempted(report.now, decision)
        touched: dict[int, RequestStream] = {}
        to_abort: list[SeqId] = []
        to_pause: list[SeqId] = []
        for event in report.events:
            stream = self._streams.get(event.seq_id)
            if stream is None:
                continue  # its reader has gone
            try:
                if report.is_last:
                    end, cut = self._cut_off(event, stream.request)
                    should_abort = stream.accept(end, report.now, cut=cut)
                else:
                    should_abort = stream.accept(event, report.now)
            except Exception as error:  # text that cannot be made fails its own choice, not its neighbours
                stream.fail(event.seq_id, f"the text could not be made: {type(error).__name__}: {error}", report.now)
                should_abort = event.finish is None
            if should_abort:
                to_abort.append(event.seq_id)
            elif stream.is_full(event.seq_id):
                to_pause.append(event.seq_id)
            if event.finish is not None or should_abort:
                stream.engine_ns = self._meter.read(stream.all_ids.start)
            touched[id(stream)] = stream
        for stream in touched.values():
            stream.wake()
        if to_abort:
            self._engine.abort(to_abort)
        if to_pause:
            self._pause(to_pause)
        if self._observer is not None and report.step is not None:
            self._observer.on_step(report.step)
