"""A door in front of a server, as a program of its own: it can be slow, and killed while the server keeps what it holds.

python gate.py PORT SERVERS_PORT
"""

from __future__ import annotations

import asyncio
import contextlib
import sys


async def pour(source: asyncio.StreamReader, into: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            into.write(data)
            await into.drain()
    into.close()


async def main(port: int, server: int) -> None:
    async def passed(inward: asyncio.StreamReader, outward: asyncio.StreamWriter) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server)
        await asyncio.gather(pour(inward, writer), pour(reader, outward))

    async with await asyncio.start_server(passed, "127.0.0.1", port) as door:
        sys.stdout.write(f"{door.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        await door.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
