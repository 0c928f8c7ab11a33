"""Editors on one canvas over HTTP, in a process of their own:
`python -m bench.editing PORT PROJECT SECONDS`, with their tokens in a JSON array on standard input.

Each editor follows the canvas, and moves its own shape ten times a second, even if an answer is late.
Prints the seconds to each acknowledgement, and to each arrival at each other editor, from the time at which
the patch was due.
"""

import asyncio
import json
import re
import sys
import time

EDITORS = 20
EVERY_S = 0.1
_SENDER = re.compile(rb'\["e(\d+)",(\d+)\]')


async def main(port: int, tokens: list[str], project: str, seconds: float) -> None:
    due: dict[tuple[int, int], float] = {}
    acknowledged: list[float] = []
    arrived: list[float] = []
    path = f"/v1/projects/{project}/canvas"
    about = [f"host: 127.0.0.1:{port}\r\nauthorization: Bearer {token}\r\n" for token in tokens]
    patches = int(seconds / EVERY_S)

    async def edit(editor: int, began: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for seq in range(1, patches + 1):
            at = due[editor, seq] = began + seq * EVERY_S + editor * EVERY_S / EDITORS
            await asyncio.sleep(max(0, at - time.perf_counter()))
            properties = {"x": 100.5 + seq, "y": 200.25, "version": 17 + seq, "versionNonce": 123_456_789}
            body = json.dumps({"client": f"e{editor}", "seq": seq, "set": {f"shape{editor:06d}": properties}})
            kind = "content-type: application/vnd.ximler.records+json\r\n"
            writer.write(
                f"PATCH {path} HTTP/1.1\r\n{about[editor]}{kind}content-length: {len(body)}\r\n\r\n{body}".encode()
            )
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            answer = await reader.readexactly(int(length[1]) if length else 0)
            if not head.startswith(b"HTTP/1.1 200"):
                raise AssertionError(answer)
            acknowledged.append(time.perf_counter() - at)
        writer.close()

    async def follow(follower: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
        writer.write(f"GET {path}/changes HTTP/1.1\r\n{about[follower]}\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        started.release()
        seen = 0
        while seen < EDITORS * patches:
            line = await reader.readline()
            if line.startswith(b"event: reload"):
                raise AssertionError("an event was lost")
            if line.startswith(b"data: "):
                now = time.perf_counter()
                for editor, seq in _SENDER.findall(line):
                    seen += 1
                    if int(editor) != follower:
                        arrived.append(now - due[int(editor), int(seq)])
        writer.close()

    started = asyncio.Semaphore(0)
    following = [asyncio.create_task(follow(editor)) for editor in range(EDITORS)]
    for _ in following:
        await started.acquire()
    began = time.perf_counter() + 0.5
    await asyncio.gather(*(edit(editor, began) for editor in range(EDITORS)))
    await asyncio.wait_for(asyncio.gather(*following), 30)
    print(json.dumps({"acknowledged": acknowledged, "arrived": arrived}))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), json.load(sys.stdin), sys.argv[2], float(sys.argv[3])))
