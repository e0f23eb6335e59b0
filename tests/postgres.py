"""A real Postgres for tests: Debian's or any other on the PATH, on loopback, gone with the session."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_S = 60.0


def find_binaries() -> Path | None:
    """The directory of initdb and postgres."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


@contextmanager
def running_postgres(binaries: Path) -> Iterator[str]:
    """Start a server on a free port of loopback; yield the URL of its first database."""
    # Postgres refuses to run as root; Debian's package brings a user for it.
    account: dict[str, str] = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="headrace-postgres-"))
    try:
        if account:
            shutil.chown(folder, **account)
        data = folder / "data"
        initdb = [binaries / "initdb", "-D", data, "-U", "headrace", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(initdb, check=True, cwd=folder, stdout=subprocess.DEVNULL, **account)
        port = free_port()
        server = subprocess.Popen(
            [
                *(binaries / "postgres", "-D", data, "-p", str(port), "-k", folder),
                *("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "shared_buffers=16MB"),
            ],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **account,
        )
        try:
            wait_until_ready(binaries, port, server)
            yield f"postgresql://headrace@127.0.0.1:{port}/postgres"
        finally:
            server.terminate()
            server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_ready(binaries: Path, port: int, server: subprocess.Popen[bytes]) -> None:
    """Ask it until it says that it takes connections."""
    deadline_s = time.monotonic() + START_S
    ask = [str(binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port), "-t", "1"]
    while subprocess.run(ask, check=False).returncode != 0:
        assert server.poll() is None, f"postgres ended with {server.returncode}"
        assert time.monotonic() < deadline_s, "postgres did not start"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def new_schema(url: str) -> str:
    """Make an empty schema; return the URL that leads into it."""
    import asyncpg

    name = f"test_{secrets.token_hex(6)}"

    async def create() -> None:
        connection: Any = await asyncpg.connect(url)
        await connection.execute(f"CREATE SCHEMA {name}")
        await connection.close()

    asyncio.run(create())
    return f"{url}?search_path={name}"
