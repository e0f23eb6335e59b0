"""`Mover`: one place's I/O thread: finds, fetches and stores blocks; nobody else waits for a disk or a network.

Owns its transport and the counts of what went through it. Work comes by `submit`, results go to `deliver`, which must
not block. What a caller waits for goes before what it does not wait for.
Invariants: each job but `Drop` gets exactly one result, whatever fails; a block is reported as fetched only if its
frame is whole; jobs in line are bounded: a `Store` beyond `_MOST_STORES` is refused. A place that fails is left alone
for a while that doubles each time, up to a minute, and everything asked of it meanwhile is answered with nothing. A
call that lasts longer than `limit_s` is a failure: the place is not up while it lasts, and left alone when it ends.
A place that is full is read as before, and offered blocks again after such a while.
An idle mover sleeps, but for a try at the end of each pause: a place that is well again shows so. Tests drive
`work_off` instead of the thread.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar, assert_never

import msgspec

from headrace.core.protocols import Clock, Transport
from headrace.core.stats import TierStats
from headrace.kv.transfer.frames import KEY_BYTES, FrameCodec
from headrace.kv.transfer.host_pool import HostPool

_MOST_STORES = 128
_TOGETHER = 8  # blocks read in one call
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_LONGEST_CALL_S = 5.0
_SMOOTHING = 0.2
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_BLOCK = bytes(KEY_BYTES)  # what a place is asked for to hear whether it is there
T = TypeVar("T")
_log = logging.getLogger(__name__)


class Locate(NamedTuple):
    """How many leading keys are there?"""

    ticket: int
    keys: tuple[bytes, ...]


class Fetch(NamedTuple):
    """Bring leading keys into host slots."""

    ticket: int
    keys: tuple[bytes, ...]
    slots: tuple[int, ...]


class Store(NamedTuple):
    """Keep what is in a host slot under a key."""

    key: bytes
    slot: int
    saves_s: float


class Drop(NamedTuple):
    """Forget a key: what is stored under it is not to be trusted. The one job without a result."""

    key: bytes


class Located(NamedTuple):
    """So many leading keys are there."""

    ticket: int
    num_blocks: int


class Fetched(NamedTuple):
    """So many leading blocks are in their slots and whole."""

    ticket: int
    num_blocks: int


class Stored(NamedTuple):
    """The slot is no longer read."""

    key: bytes
    is_kept: bool


Job = Locate | Fetch | Store | Drop
Result = Located | Fetched | Stored


class Mover:
    """Carries blocks between the host pool and one place."""

    def __init__(
        self,
        name: str,
        transport: Transport,
        codec: FrameCodec,
        host: HostPool,
        clock: Clock,
        *,
        latency_s: float = 1e-3,
        bytes_per_s: float = 500e6,
        limit_s: float = _LONGEST_CALL_S,
    ) -> None:
        """Make a mover that has not been started. `latency_s` and `bytes_per_s` are guesses until measured."""
        self.name = name
        self.deliver: Callable[[Result], None] = lambda result: None
        self._transport = transport
        self._codec = codec
        self._host = host
        self._clock = clock
        self._latency_s = latency_s
        self._s_per_byte = 1.0 / bytes_per_s
        self._limit_s = limit_s
        self._wake = threading.Condition()
        self._urgent: deque[Locate | Fetch | Drop] = deque()
        self._stores: deque[Store | Drop] = deque()
        self._thread: threading.Thread | None = None
        self._is_stopping = False
        self._pause_s = 0.0
        self._retry_at = 0.0
        self._full_pause_s = 0.0  # the same for a place that is full, which can be read
        self._offer_at = 0.0
        self._call_began_s: float | None = None  # of the call that the I/O thread is in
        self._num_fetched = 0  # whole blocks of the fetch that is being done
        self._stats = TierStats(name=name)

    # --- any thread ----------------------------------------------------------------------------------------------

    @property
    def is_up(self) -> bool:
        """Say whether it is worth asking: the place works, or it is time to try again."""
        return not self._silent_s and (not self._pause_s or self._clock.now() >= self._retry_at)

    @property
    def _silent_s(self) -> float:
        """Return how long the call that the I/O thread is in has lasted, if that is too long, else 0."""
        began_s = self._call_began_s
        elapsed_s = 0.0 if began_s is None else self._clock.now() - began_s
        return elapsed_s if elapsed_s > self._limit_s else 0.0

    @property
    def has_room(self) -> bool:
        """Say whether a `Store` would be taken."""
        return len(self._stores) < _MOST_STORES

    def predict_s(self, num_blocks: int) -> float:
        """Return the seconds that fetching so many blocks takes, jobs in line left aside."""
        return self._latency_s + num_blocks * self._codec.frame_bytes * self._s_per_byte

    def submit(self, job: Job) -> bool:
        """Put a job in line; False, and no result will come, if there is no room for it."""
        with self._wake:
            if isinstance(job, Store):
                if len(self._stores) >= _MOST_STORES or self._is_stopping:
                    self._stats.num_dropped += 1
                    return False
                self._stores.append(job)
            elif isinstance(job, Drop):  # before anybody asks for it again, and after what is in line to store it
                self._urgent.append(job)
                self._stores.append(job)
            else:
                self._urgent.append(job)
            self._wake.notify()
        return True

    def skip(self, num_blocks: int) -> None:
        """Count blocks that are there and are computed instead, which is faster."""
        self._stats.num_skipped += num_blocks

    def note_late(self) -> None:
        """Count a request that has stopped waiting for this place."""
        self._stats.num_late += 1

    def stats(self) -> TierStats:
        """Return the counts so far; a copy may be one job old."""
        silent_s = self._silent_s
        return msgspec.structs.replace(
            self._stats,
            is_up=not (self._pause_s or silent_s or self._full_pause_s),
            is_full=self._full_pause_s > 0.0,
            silent_s=silent_s,
            stored_bytes=self._transport.num_bytes,
        )

    # --- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name=f"headrace-kv-{self.name}", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Work off what is in line for at most `timeout_s` seconds, then end. Idempotent."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        if self._thread is None:
            self.work_off()
        else:
            self._thread.join(timeout_s)
        self._transport.close()

    def work_off(self) -> None:
        """Do everything that is in line, on the calling thread."""
        while (job := self._take()) is not None:
            self._do(job)

    def _run(self) -> None:
        self._knock()
        while True:
            with self._wake:
                while not (self._urgent or self._stores or self._is_stopping or self._is_to_be_tried):
                    self._wake.wait(max(self._retry_at - self._clock.now(), 0.0) if self._pause_s else None)
            job = self._take()
            if job is not None:
                self._do(job)
            elif self._is_stopping:
                return
            else:
                self._knock()

    @property
    def _is_to_be_tried(self) -> bool:
        """Say whether a place that failed has been left alone for long enough."""
        return self._pause_s > 0.0 and self._clock.now() >= self._retry_at

    def _knock(self) -> None:
        """Hear whether the place is there, though nobody wants anything of it."""
        self._tried(lambda: self._call(lambda: self._transport.has((_NO_BLOCK,))), 0)

    def _take(self) -> Job | None:
        with self._wake:
            if self._urgent:
                return self._urgent.popleft()
            return self._stores.popleft() if self._stores else None

    # --- the I/O thread ------------------------------------------------------------------------------------------

    def _do(self, job: Job) -> None:
        """Do one job and deliver its result."""
        began = self._clock.now()
        match job:
            case Locate():
                count = self._tried(lambda: self._call(lambda: self._transport.has(job.keys)), 0)
                if self._pause_s == 0.0:
                    self._latency_s += _SMOOTHING * (self._clock.now() - began - self._latency_s)
                self._stats.num_misses += len(job.keys) - count
                self.deliver(Located(job.ticket, count))
            case Fetch():
                self._num_fetched = 0
                self._tried(lambda: self._fetch(job), None)
                count = self._num_fetched
                self._time_fetch(count, self._clock.now() - began)
                self.deliver(Fetched(job.ticket, count))
            case Store():
                is_kept = self._tried(lambda: self._store(job), False)
                self._stats.store_s += self._clock.now() - began
                self.deliver(Stored(job.key, is_kept))
            case Drop():
                self._tried(lambda: self._call(lambda: self._transport.drop(job.key)), None)
            case _:
                assert_never(job)

    def _tried(self, work: Callable[[], T], otherwise: T) -> T:
        """Do work unless the place is to be left alone; a failure starts or lengthens its pause."""
        if not self.is_up:
            return otherwise
        try:
            done = work()
        except OSError as error:
            self._stats.num_errors += 1
            if not self._pause_s:
                _log.warning("KV tier '%s' fails (%s); serving goes on without it, retrying", self.name, _cause(error))
            self._pause_s = _longer(self._pause_s)
            self._retry_at = self._clock.now() + self._pause_s
            return otherwise
        if self._pause_s:
            _log.info("KV tier '%s' works again", self.name)
            self._pause_s = 0.0
        return done

    def _call(self, work: Callable[[], T]) -> T:
        """Make one call. Raises OSError when it fails, and when it has taken too long: its answer comes too late."""
        self._call_began_s = began_s = self._clock.now()
        try:
            done = work()
        finally:
            self._call_began_s = None
        if (elapsed_s := self._clock.now() - began_s) > self._limit_s:
            raise TimeoutError(f"no answer for {elapsed_s:.1f} s")
        return done

    def _fetch(self, job: Fetch) -> None:
        """Read and check blocks up to the first that is missing or not whole, counting those that are."""
        for first in range(0, len(job.keys), _TOGETHER):
            keys = job.keys[first : first + _TOGETHER]
            frames = [self._host.frame(slot) for slot in job.slots[first : first + _TOGETHER]]
            sizes = self._call(partial(self._transport.get, keys, frames))
            for key, frame, size in zip(keys, frames, sizes, strict=True):
                if size is None:
                    self._stats.num_misses += 1
                    return
                if not self._codec.is_whole(key, frame, size):
                    self._stats.num_corrupt += 1
                    self._transport.drop(key)
                    return
                self._num_fetched += 1

    def _store(self, job: Store) -> bool:
        """Seal a slot's block and send it."""
        if self._is_known_full:
            self._stats.num_dropped += 1
            return False
        frame = self._host.frame(job.slot)
        self._codec.seal(job.key, frame)
        try:
            is_kept = self._call(lambda: self._transport.put(job.key, frame, job.saves_s))
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self._note_full(error)
            return False
        if is_kept:
            if self._full_pause_s:
                _log.info("KV tier '%s' has room again", self.name)
                self._full_pause_s = 0.0
            self._stats.num_stored += 1
            self._stats.written_bytes += frame.nbytes
        return is_kept

    @property
    def _is_known_full(self) -> bool:
        """Say whether the place was found to be full so lately that nothing is offered to it."""
        return self._full_pause_s > 0.0 and self._clock.now() < self._offer_at

    def _note_full(self, error: OSError) -> None:
        self._stats.num_errors += 1
        if not self._full_pause_s:
            _log.warning("KV tier '%s' is full (%s); it is read, and nothing new is stored", self.name, _cause(error))
        self._full_pause_s = _longer(self._full_pause_s)
        self._offer_at = self._clock.now() + self._full_pause_s

    def _time_fetch(self, count: int, elapsed_s: float) -> None:
        """Count what was fetched and learn the rate from it."""
        num_bytes = count * self._codec.frame_bytes
        self._stats.num_hits += count
        self._stats.read_bytes += num_bytes
        self._stats.load_s += elapsed_s
        if count:
            measured = max(elapsed_s - self._latency_s, 0.0) / num_bytes
            self._s_per_byte += _SMOOTHING * (measured - self._s_per_byte)


def _longer(pause_s: float) -> float:
    """Return the next pause after one of `pause_s`, which is 0 before the first."""
    return min(max(2 * pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)


def _cause(error: OSError) -> str:
    """Say what went wrong without naming a path or an address."""
    return error.strerror or (str(error) if isinstance(error, ConnectionError | TimeoutError) else type(error).__name__)
