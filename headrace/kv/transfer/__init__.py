"""KV blocks as bytes on their way: host memory, sealed frames, and the transports to disk, Redis and other workers."""

from headrace.kv.transfer.disk import DiskTransport
from headrace.kv.transfer.frames import FrameCodec
from headrace.kv.transfer.host_pool import HostPool
from headrace.kv.transfer.mover import Drop, Fetch, Fetched, Locate, Located, Mover, Store, Stored
from headrace.kv.transfer.redis_server import RedisTransport

__all__ = [
    "DiskTransport",
    "Drop",
    "Fetch",
    "Fetched",
    "FrameCodec",
    "HostPool",
    "Locate",
    "Located",
    "Mover",
    "RedisTransport",
    "Store",
    "Stored",
]
