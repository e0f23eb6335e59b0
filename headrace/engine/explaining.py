"""Why a request waits, was preempted or refused, in numbers and in a sentence.

Owns: what is remembered of requests that have ended or were refused, bounded in number and time, and of the preemptions
of live ones. Network thread only. What is said of a live request comes from the engine thread (`sched.situation`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from headrace.core.errors import HeadraceError
from headrace.core.protocols import Clock
from headrace.core.request import Knock, Request, RequestId, SeqId
from headrace.core.stats import RequestStats
from headrace.core.why import ChoiceNote, Explanation, PreemptionNote, RequestState, WaitReason
from headrace.sched.decisions import Preempted, PreemptReason
from headrace.sched.situation import Situation

_MOST_KEPT, _KEPT_S = 2048, 600.0
_MOST_PREEMPTIONS = 16  # of one choice that are remembered, the last ones

_Name = Callable[[SeqId], str | None]  # the request of a sequence, if the asker may know it


class Memory:
    """What is known of requests besides what the engine has of live ones."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ended: OrderedDict[RequestId, tuple[float, Explanation]] = OrderedDict()
        self._preemptions: dict[SeqId, list[tuple[float, Preempted]]] = {}

    def note_preempted(self, now: float, decision: Preempted) -> None:
        """Remember that a live sequence gave its blocks back."""
        notes = self._preemptions.setdefault(decision.seq_id, [])
        notes.append((now, decision))
        del notes[:-_MOST_PREEMPTIONS]

    def note_ended(self, request: Request, stats: RequestStats, seq_ids: Iterable[SeqId], name: _Name) -> None:
        """Remember how a request ended; what was known of its sequences becomes part of that."""
        arrival_s = request.arrival_s
        choices = []
        for index, (seq_id, finish) in enumerate(zip(seq_ids, stats.finishes, strict=False)):
            notes = self.preemptions(seq_id, arrival_s, name)
            self._preemptions.pop(seq_id, None)
            sentence = f"It ended: {finish.value}.{_told(notes)}"
            choices.append(
                ChoiceNote(
                    index=index,
                    state=RequestState.FINISHED,
                    sentence=sentence,
                    finish=finish.value,
                    preemptions=notes,
                )
            )
        finished_after_s = stats.finished_s - arrival_s
        explanation = Explanation(
            id=request.request_id,
            model=request.model,
            state=RequestState.FINISHED,
            sentence=_ended_sentence(stats, arrival_s),
            age_s=0.0,
            queued_for_s=_since(stats.first_scheduled_s, arrival_s),
            first_token_after_s=_since(stats.first_token_s, arrival_s),
            finished_after_s=finished_after_s,
            prompt_tokens=stats.prompt_tokens,
            cached_tokens=stats.cached_tokens,
            late_places=stats.late_places,
            choices=choices,
        )
        self._keep(request, explanation)

    def note_refused(self, request: Request | Knock, error: HeadraceError) -> None:
        """Remember why a request was not let in."""
        explanation = Explanation(
            id=request.request_id,
            model=request.model,
            state=RequestState.REFUSED,
            sentence=f"It was refused: {error.message}.",
            age_s=0.0,
            prompt_tokens=len(request.prompt) if isinstance(request, Request) else None,
            refused=error.code,
        )
        self._keep(request, explanation)

    def find(self, request_id: RequestId) -> tuple[float, Explanation] | None:
        """Return when a request that has ended came, and what is remembered of it."""
        self._forget_old()
        return self._ended.get(request_id)

    def preemptions(self, seq_id: SeqId, arrival_s: float, name: _Name) -> list[PreemptionNote]:
        """Return the preemptions of a sequence, oldest first."""
        return [
            PreemptionNote(
                at_s=now - arrival_s,
                by=name(decision.by),
                reason=decision.reason.value,
                blocks_freed=decision.num_freed,
                tokens_lost=decision.num_lost,
            )
            for now, decision in self._preemptions.get(seq_id, ())
        ]

    def _keep(self, request: Request | Knock, explanation: Explanation) -> None:
        self._ended[request.request_id] = (request.arrival_s, explanation)
        self._ended.move_to_end(request.request_id)
        while len(self._ended) > _MOST_KEPT:
            self._ended.popitem(last=False)
        self._forget_old()

    def _forget_old(self) -> None:
        oldest_s = self._clock.now() - _KEPT_S
        while self._ended:
            arrival_s, explanation = next(iter(self._ended.values()))
            if arrival_s + (explanation.finished_after_s or 0.0) >= oldest_s:
                return
            self._ended.popitem(last=False)


def explain_choice(index: int, situation: Situation, notes: list[PreemptionNote], name: _Name) -> ChoiceNote:
    """Put one live sequence into words."""
    match situation.state:
        case RequestState.WAITING:
            prefix_from = None if situation.filler is None else name(situation.filler)
            return ChoiceNote(
                index=index,
                state=situation.state,
                sentence=_waiting_sentence(situation, prefix_from) + _told(notes),
                reason=situation.reason,
                position=situation.position,
                waiting=situation.num_waiting,
                priority=situation.priority,
                is_background=situation.is_background,
                running=situation.num_running,
                places=situation.num_places,
                blocks_needed=situation.num_needed,
                blocks_free=situation.num_free,
                prefix_from=prefix_from,
                tenant_ahead=situation.tenant_ahead,
                beams=situation.num_beams if situation.num_beams > 1 else None,
                load_blocks=None if situation.load is None else situation.load.num_blocks,
                load_left_s=None if situation.load is None else situation.load.left_s,
                preemptions=notes,
            )
        case _:
            return ChoiceNote(
                index=index,
                state=situation.state,
                sentence=_running_sentence(situation) + _told(notes),
                priority=situation.priority,
                is_background=situation.is_background,
                prompt_computed=situation.num_computed,
                output_tokens=situation.num_output,
                late_places=() if situation.late is None else situation.late.places,
                preemptions=notes,
            )


def in_inbox(index: int) -> ChoiceNote:
    """Put a sequence into words that the engine thread has not seen yet."""
    return ChoiceNote(
        index=index,
        state=RequestState.WAITING,
        sentence="It has just come; the engine looks at it when the step in flight has ended.",
        reason=WaitReason.INBOX,
    )


def _waiting_sentence(situation: Situation, prefix_from: str | None) -> str:
    place = (
        f"It waits as number {situation.position} of {situation.num_waiting}"
        if situation.position is not None
        else f"It waits, further back than the scheduler looks, among {situation.num_waiting}"
    )
    match situation.reason:
        case WaitReason.BACKGROUND:
            why = "it is background work, and other requests wait"
        case WaitReason.PREFIX:
            why = f"{prefix_from or 'another request'} is computing what it begins with, and it will share that"
        case WaitReason.LOAD if (load := situation.load) is not None:
            why = (
                f"{' and '.join(load.places)} may have {load.num_blocks:,} KV blocks of what it begins with; without "
                f"an answer it is computed after {load.left_s:.3f} s more"
            )
        case WaitReason.SEARCH:
            num_left = max(situation.num_places - situation.num_running, 0)
            why = (
                f"its search of {situation.num_beams} beams begins with room for all of them: it needs "
                f"{situation.num_beams} places and {situation.num_needed:,} KV blocks; {num_left} and "
                f"{situation.num_free:,} are free"
            )
        case WaitReason.FAIRNESS:
            why = f"its tenant has had {situation.tenant_ahead:,.0f} tokens more than the neediest that waits"
        case WaitReason.PLACES:
            why = f"{situation.num_running} sequences run, and no more than {situation.num_places} may"
        case WaitReason.BLOCKS:
            why = f"it needs {situation.num_needed:,} KV blocks, and {situation.num_free:,} are free"
        case _:
            why = (
                f"it needs {situation.num_needed:,} of {situation.num_free:,} free KV blocks, of which some are kept "
                f"for the {situation.num_running} sequences that run, and room in a step"
            )
    return f"{place} (priority {situation.priority}): {why}."


def _running_sentence(situation: Situation) -> str:
    if situation.state is RequestState.PAUSED:
        return f"It is paused after {situation.num_output:,} tokens, until its reader has caught up."
    late = "" if situation.late is None else _late_sentence(*situation.late)
    if not situation.num_output:
        done = f"{situation.num_computed:,} of {situation.prompt_len:,} prompt tokens are computed"
        return f"It is running: {done}.{late}"
    return f"It is running and has generated {situation.num_output:,} tokens.{late}"


def _late_sentence(places: tuple[str, ...], waited_s: float) -> str:
    """Say what was waited for in vain, to follow another sentence; nothing if nothing was."""
    if not places:
        return ""
    return f" It waited {waited_s:.3f} s for {' and '.join(places)}, without an answer, and was computed instead."


def _ended_sentence(stats: RequestStats, arrival_s: float) -> str:
    waited = "never ran"
    if stats.first_scheduled_s is not None:
        waited = f"waited {stats.first_scheduled_s - arrival_s:.3f} s"
    first = ""
    if stats.first_token_s is not None:
        first = f", had its first token after {stats.first_token_s - arrival_s:.3f} s"
    preempted = f", was preempted {_times(stats.num_preemptions)}" if stats.num_preemptions else ""
    finishes = " and ".join(sorted({finish.value for finish in stats.finishes}))
    return (
        f"It {waited}{first}{preempted} and ended after {stats.finished_s - arrival_s:.3f} s: {finishes}. "
        f"{stats.cached_tokens:,} of {stats.prompt_tokens:,} prompt tokens were cached, "
        f"{stats.completion_tokens:,} tokens were generated.{_late_sentence(stats.late_places, stats.late_s)}"
    )


def _told(notes: list[PreemptionNote]) -> str:
    """Put preemptions into words, to follow another sentence."""
    if not notes:
        return ""
    last = notes[-1]
    whom = last.by or "another request"
    because = {
        PreemptReason.GROWTH.value: f"to {whom}, which needed a block when none was free",
        PreemptReason.PLACE.value: f"to {whom}, which goes before background work",
    }.get(last.reason, f"to {whom}")
    return (
        f" It was preempted {_times(len(notes))}, last after {last.at_s:.3f} s: it gave {last.blocks_freed:,} blocks "
        f"{because}, and lost {last.tokens_lost:,} computed tokens."
    )


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _since(moment_s: float | None, start_s: float) -> float | None:
    return None if moment_s is None else moment_s - start_s
