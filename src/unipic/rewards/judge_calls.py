"""One call of a judge over HTTP, by OpenAI's client: bounded in time and size, and its failures told apart.

Nothing is retried here, no redirect is followed, and the key never stands in what is raised.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from unipic.errors import BadInput, TryLater, one_line
from unipic.rewards.judge_reply import BadReply, Declined

if TYPE_CHECKING:
    import httpx2
    import openai

MOST_REPLY = 1 << 20  # bytes
NO_SUCH_SAMPLE = {400, 413, 422}  # a sample or the parameters are at fault, which only other samples can tell
LATER = {408, 409, 425, 429}


class Unavailable(Exception):
    """The judge was not reached, or is busy. after: seconds that it asked to be left alone."""

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = after


class Refused(Declined):
    """A status that speaks against what was sent."""


class Caller:
    """Where a judge is, and the key to it. timeout: seconds of a call, all in all. concurrency: calls of a client at a
    time. heard: set once a call has brought a verdict; what then bars a call is new. Raises BadInput without `openai`.
    """

    def __init__(self, base_url: str, key: str | None, timeout: float, concurrency: int) -> None:
        try:
            import httpx2
            import openai
            import stamina  # noqa: F401
        except ImportError as error:
            mend = 'pip install "unipic[judge]"'
            raise BadInput("a judge needs packages that are not installed", f"kind: judge: {error}", mend) from None
        self.openai, self.httpx2 = openai, httpx2
        self.base_url, self.timeout, self.concurrency, self._key = base_url, timeout, concurrency, key
        self.heard = False

    def client(self) -> openai.AsyncOpenAI:
        """For one event loop; to be closed."""
        most = self.concurrency
        http = self.httpx2.AsyncClient(
            timeout=self.timeout,
            limits=self.httpx2.Limits(max_connections=most, max_keepalive_connections=most),
            follow_redirects=False,
            trust_env=False,  # a proxy that the environment names would be sent the key
            verify=self.httpx2.create_ssl_context(),  # certificates that it names, by SSL_CERT_FILE, do count
            event_hooks={"response": [self._bound]},
        )
        return self.openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=self._key or "none",
            max_retries=0,
            timeout=self.timeout,
            http_client=http,
            default_headers={"Accept-Encoding": "identity"},  # so that what is bounded is all that there is
        )

    async def ask(self, client: openai.AsyncOpenAI, request: Mapping[str, Any]) -> bytes:
        """A reply's body. Raises Unavailable, BadReply, Declined; BadInput and TryLater where asking is in vain."""
        openai = self.openai
        try:
            async with asyncio.timeout(self.timeout):  # also of a byte a second
                response = await client.chat.completions.with_raw_response.create(**request)
                return bytes(response.content)
        except (TimeoutError, openai.APITimeoutError):
            raise Unavailable(f"no answer within {self.timeout:g} s") from None
        except openai.APIConnectionError as error:
            bad = next((e for e in (error.__cause__, error.__context__) if isinstance(e, BadReply)), None)
            raise bad or Unavailable(self.clean(error.__cause__ or error)) from None
        except openai.APIStatusError as error:
            raise self._status(error) from None

    def _status(self, error: openai.APIStatusError) -> Exception:
        """What a status other than success means."""
        status = error.status_code
        name = HTTPStatus(status).phrase if status in {*HTTPStatus} else "?"
        told, said = f"status {status}, {name}", self.clean(error.message)
        if status == 402 or (status == 429 and error.code == "insufficient_quota"):
            return TryLater("the judge's account has no money left", self.base_url, "run the same command again then")
        if status in LATER or status >= 500:
            return Unavailable(told, _seconds(error.response.headers.get("retry-after")))
        if status in NO_SUCH_SAMPLE:
            return Refused(f"{told}: {said}")
        if status in (401, 403):
            return self._barred("the judge does not take the key", told, "see key_env")
        return self._barred("the judge is not there", f"{told}: {said}", "see base_url and model")

    def _barred(self, what: str, told: str, mend: str) -> Exception:
        """A setting is wrong; but not if it was right before: then the run's work is kept until that is mended."""
        where = f"{self.base_url}: {told}"
        if self.heard:
            return TryLater(f"{what} any more", where, f"{mend}; then run the same command again")
        return BadInput(what, where, mend)

    def clean(self, said: object) -> str:
        """On one line, and without the key, should a server repeat it."""
        text = f"{said}" or type(said).__name__
        return one_line(text.replace(self._key, "…") if self._key else text)

    async def _bound(self, response: httpx2.Response) -> None:
        response.stream = _bounded(self.httpx2, response)


def _bounded(httpx2: Any, response: httpx2.Response) -> httpx2.AsyncByteStream:
    """A response's body, which ends with a BadReply where it becomes too long."""
    inner: Any = response.stream

    class Bounded(httpx2.AsyncByteStream):  # type: ignore[misc]
        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            if response.headers.get("content-encoding", "identity") != "identity":
                raise BadReply("the reply is packed, which was not asked for")
            async for piece in inner:
                size += len(piece)
                if size > MOST_REPLY:
                    raise BadReply(f"the reply is longer than {MOST_REPLY} bytes")
                yield piece

        async def aclose(self) -> None:
            await inner.aclose()

    return Bounded()


def _seconds(header: str | None) -> float | None:
    """Of Retry-After; a date in it is not read."""
    return float(header) if header and header.isascii() and header.isdigit() and len(header) < 7 else None
