"""Reading a file over HTTP that may never come, never end, or not be what was asked for."""

import asyncio
import re
from asyncio import AbstractEventLoop
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from aiohttp import ClientResponse, ClientSession, ClientTimeout, TooManyRedirects
from fsspec.asyn import get_loop, sync

from clars.errors import quoted

SILENCE = 30  # seconds without a byte, or until an answer begins, redirections included
REDIRECTIONS = 5
LOGIN = "Log in (`hf auth login`) with a token that may do this, or set HF_TOKEN."
REASONS = {
    "RevisionNotFound": "there is no such revision. Correct the address.",
    "RepoNotFound": f"there is no such repository for this user. Correct the name. {LOGIN}",
    401: f"not there, or not for this user (401). {LOGIN}",
    403: f"access is refused (403). {LOGIN}",
    404: "not found (404). Correct the address.",
    410: "not there any more (410). Correct the address.",
    416: "what lies there ends before the part that is still wanted: it is another file. Correct the address.",
    429: "the server has had too many requests (429). Wait a while; the same command goes on.",
}
T = TypeVar("T")


class Refused(Exception):
    """A server does not send the file. The message says why, and what helps."""


def reason(status: int, code: str | None = None) -> str | None:
    """Return in words why a server refuses, or None where the status alone does not tell.

    Args:
        status: of the answer, 400 or above.
        code: what the Hub's header X-Error-Code says.
    """
    if status >= 500:
        return f"the server has failed ({status}); the address may be right. Say the same again later."
    code = None if status in (401, 403) else code
    return REASONS.get(code) or REASONS.get(status)


@dataclass(frozen=True)
class Body:
    """The content of a file from the byte `start` on."""

    loop: AbstractEventLoop
    answer: ClientResponse
    start: int

    def read(self, most: int) -> bytes:
        """Return the bytes that have come, at most `most`; none at the end.

        Raises:
            Refused: none came for SILENCE seconds.
        """
        return sync(self.loop, _in_time, lambda: self.answer.content.read(most))


@contextmanager
def opened(url: str, start: int, total: int) -> Iterator[Body]:
    """Yield the content of a file, from its byte `start` on or, of a server that cannot, from the first.

    Args:
        url: of the file.
        start: the first byte that is wanted.
        total: how many bytes the whole file has to have.

    Raises:
        Refused: the server sends something else, or nothing.
        aiohttp.ClientError: the connection fails.
    """
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
    loop = get_loop()  # a thread of fsspec's, so that this works where another loop runs already, as in notebooks
    session, answer = sync(loop, _session), None
    try:
        answer = sync(loop, _in_time, lambda: session.get(url, headers=headers, max_redirects=REDIRECTIONS))
        yield Body(loop, answer, _begins(answer, start, total))
    except TooManyRedirects:
        raise Refused(f"it leads from place to place more than {REDIRECTIONS} times. Correct the address.") from None
    finally:
        sync(loop, _close, session, answer)


async def _session() -> ClientSession:
    """Return a client that leaves compressed bytes as they are, which may stand for any number of others.

    It has no limit to a whole download, which may take longer than the five minutes of the client's own. Proxies are
    those of the environment, as they are for the Hub's client.
    """
    return ClientSession(auto_decompress=False, timeout=ClientTimeout(total=None), trust_env=True)


async def _close(session: ClientSession, answer: ClientResponse | None) -> None:
    if answer is not None:
        answer.close()
    await session.close()


async def _in_time(begin: Callable[[], Awaitable[T]]) -> T:
    try:
        return await asyncio.wait_for(begin(), SILENCE)
    except TimeoutError:
        raise Refused(f"there was no answer for {SILENCE:g} seconds. The same command goes on.") from None


def _begins(answer: ClientResponse, start: int, total: int) -> int:
    """Return the byte of the file with which an answer begins."""
    if answer.status >= 400:
        why = reason(answer.status, answer.headers.get("X-Error-Code"))
        raise Refused(why or f"the server refuses ({answer.status}). Correct the address.")
    if (coding := answer.headers.get("Content-Encoding", "identity")) != "identity":
        raise Refused(f"it comes compressed ({quoted(coding)}), which was not asked for. Choose another server.")
    if answer.status == 200:
        return 0
    given = answer.headers.get("Content-Range", "")
    span = re.fullmatch(r"bytes (\d{1,19})-\d{1,19}/(\d{1,19}|\*)", given)
    if answer.status != 206 or not span or int(span[1]) != start or span[2] not in (str(total), "*"):
        raise Refused(
            f"the server was asked for the bytes from {start} on, of {total}, and answers {answer.status} with "
            f"{quoted(given)}. It is another file, or another server is needed."
        )
    return start
