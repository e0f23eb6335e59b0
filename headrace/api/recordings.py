"""All recordings: found by request id, or by the idempotency key under which a client may send the same call again.

Owns: which recordings exist, whose they are, and which have expired. Network thread only.
Invariant: at most `max_streams` recordings; a new one takes the place of the oldest that has ended. Only the key that
started a recording finds it.
Source: IETF draft "The Idempotency-Key HTTP Header Field".
"""

from __future__ import annotations

from collections import OrderedDict

from headrace.api.calls import CallId, spellings
from headrace.api.recording import Recording, RecordingLimits
from headrace.core.errors import KeyReused, Overloaded, RequestIdTaken, StreamExpired, UnknownRequest

_MOST_REMEMBERED = 4096


class Recordings:
    """Recordings by (owner, request id) and by (owner, idempotency key)."""

    def __init__(self, limits: RecordingLimits | None = None) -> None:
        self.limits = limits or RecordingLimits()
        self._by_id: OrderedDict[CallId, Recording] = OrderedDict()
        self._by_key: dict[CallId, tuple[bytes, Recording]] = {}
        self._expired: OrderedDict[CallId, None] = OrderedDict()

    def __len__(self) -> int:
        """Count the recordings."""
        return len(self._by_id)

    def find(self, owner: str, request_id: str) -> Recording:
        """Return the owner's recording. Raises StreamExpired for one that there was lately, else UnknownRequest."""
        for spelled in spellings(request_id):
            if (found := self._by_id.get((owner, spelled))) is not None:
                return found
        if any((owner, spelled) in self._expired for spelled in spellings(request_id)):
            raise StreamExpired(f"request '{request_id}' can no longer be resumed: its time is over; send it again")
        raise UnknownRequest(
            f"no request '{request_id}' of this API key can be resumed; "
            "only those that were sent with X-Resume-Grace or Idempotency-Key can"
        )

    def find_key(self, owner: str, key: str, fingerprint: bytes) -> Recording | None:
        """Return the recording of an idempotency key, if there is one. Raises KeyReused for another body."""
        found = self._by_key.get((owner, key))
        if found is None:
            return None
        if found[0] != fingerprint:
            raise KeyReused(
                f"Idempotency-Key '{key}' was sent before with another body; use a new key for a new request",
                param="Idempotency-Key",
            )
        return found[1]

    def open(self, owner: str, request_id: str, *, grace_s: float, key: str | None, fingerprint: bytes) -> Recording:
        """Make a recording. Raises RequestIdTaken, or Overloaded when all places are taken by running calls."""
        call_id = owner, request_id
        if call_id in self._by_id:
            raise RequestIdTaken(
                f"request id '{request_id}' belongs to a stream that can be resumed; send another x-request-id"
            )
        self._make_place()

        def end(recording: Recording) -> None:
            if recording.error is not None and key is not None:
                self._by_key.pop((owner, key), None)  # a failed call may be tried again

        def expire(recording: Recording) -> None:
            del self._by_id[call_id]
            if key is not None and self._by_key.get((owner, key), (b"", None))[1] is recording:
                del self._by_key[owner, key]
            self._expired[call_id] = None
            if len(self._expired) > _MOST_REMEMBERED:
                self._expired.popitem(last=False)

        keep_s = grace_s if key is None else max(grace_s, self.limits.keep_keyed_s)
        recording = Recording(self.limits, grace_s=grace_s, keep_s=keep_s, on_end=end, on_expire=expire)
        self._by_id[call_id] = recording
        if key is not None:
            self._by_key[owner, key] = (fingerprint, recording)
        return recording

    def drop_unread(self) -> None:
        """End what nobody reads: the server is going away."""
        for recording in [each for each in self._by_id.values() if not each.has_readers]:
            recording.expire()

    def _make_place(self) -> None:
        if len(self._by_id) < self.limits.max_streams:
            return
        for recording in self._by_id.values():
            if recording.is_over and not recording.has_readers:
                recording.expire()
                return
        raise Overloaded(
            f"{len(self._by_id)} resumable requests are running, the limit is {self.limits.max_streams} "
            "(resume.max_streams); try again later, or without X-Resume-Grace and Idempotency-Key",
            retry_after_s=5.0,
        )
