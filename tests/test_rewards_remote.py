"""Rewards behind HTTP: real servers, in threads and in processes that are killed; scores as in the process, or none."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import math
import os
import platform
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from tests.servers import serving
from unipic.cli import rewards as cli
from unipic.config import resolve
from unipic.errors import BadInput, TryLater, UnipicError
from unipic.rewards import colors, detector, remote_servers, specs, wire
from unipic.rewards.geneval import Detection
from unipic.rewards.remote import RemoteReward, RemoteRewardConfig
from unipic.rewards.remote_calls import Connections, NoAnswer
from unipic.rewards.reward import Reward, Sample
from unipic.rewards.world import WorldReward
from unipic.serve import reward as serve
from unipic.serve.judge import serve_judge
from unipic.serve.reward import reward_app
from unipic.world import edits, language
from unipic.world.render import render
from unipic.world.scene import sample

KEY = "a-key"


class First:
    """The first pixel's red. seconds: it takes for a picture; it notes how many were scored at a time."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.now, self.most, self.lock = seconds, 0, 0, threading.Lock()

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self.seconds * len(samples) * random.random() * 2)
        with self.lock:
            self.now -= 1
        return [reds([s])[0] for s in samples]


def reds(samples: Sequence[Sample]) -> list[float | None]:
    return [float(np.asarray(s.picture)[0, 0, 0]) for s in samples]


def pictures(count: int) -> list[Sample]:
    return [Sample(f"number {i}", Image.new("RGB", (32, 32), (i, 0, 0))) for i in range(count)]


def scoring(reward: Reward, name: str = "first", **settings: Any) -> AbstractContextManager[str]:
    """A server of the reward; its address."""
    return serving(reward_app(reward, name, **settings))


@contextmanager
def process(*command: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its address."""
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    server = subprocess.Popen([sys.executable, *command], env=env, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr
        said = server.stderr.readline()
        address = re.search(r"http://[\d.:]+", said)
        assert address, said + server.stderr.read()
        yield server, address[0]
    finally:
        server.kill()
        server.wait()


@contextmanager
def unanswered() -> Iterator[str]:
    """An address where no connect is answered, as of a machine that is off: its queue is full."""
    with socket.socket() as deaf, ExitStack() as queue:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(4):
            waiting = queue.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        yield f"http://127.0.0.1:{deaf.getsockname()[1]}"


# --- scores -----------------------------------------------------------------------------------------------------------


def of_the_world(count: int) -> list[Sample]:
    """Prompts, descriptions, captions and edits, each with a right picture and one that belongs to another."""
    found = []
    for seed in range(count):
        rng, scene = np.random.default_rng(seed), sample(seed, "test")
        edit = edits.sample(seed, "test", edits.TYPES[seed % 12])
        other = render(sample(seed + 500, "train"))
        for spec in (language.prompts(scene, rng), language.dense(scene, rng), scene):
            text = language.caption(scene) if spec is scene else spec.text
            found += [Sample(text, picture, None, spec) for picture in (render(scene), other)]
        source = render(edit.source)
        found += [Sample(edit.instruction, picture, source, edit) for picture in (render(edit.target), source)]
    return [*found, Sample("of no world", other), Sample("of GenEval", other, None, {"include": [], "tag": "colors"})]


def test_scores_of_the_world_are_those_of_the_process(tmp_path: Path) -> None:
    """Of `unipic serve-reward`, from a recipe's reward, with a key."""
    recipe = tmp_path / "strict.yaml"
    recipe.write_text("kind: world\nsoft: false\nweight: 0.25\n")
    command = ("-m", "unipic.cli", "serve-reward", str(recipe), "--port", "0", "--workers", "2")
    samples = of_the_world(5)
    with process(*command, UNIPIC_REWARD_KEY=KEY) as (server, url):
        there = RemoteReward([url], KEY, concurrency=4, batch=3).score(samples)
        here = WorldReward(soft=False).score(samples)
        assert there == here
        assert {0.0, 1.0, None} < set(there)
        assert any(score not in (0, 1, None) for score in there)
        assert re.fullmatch(r"world [0-9a-f]{12}", httpx.get(f"{url}/health").json()["reward"])
        for key, sent in ((None, {}), ("another", {"Authorization": "Bearer another"})):
            assert httpx.post(f"{url}/v1/score", headers=sent).status_code == 401
            with pytest.raises(BadInput, match="needs the right key"):
                RemoteReward([url], key).score(samples[:1])
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) in (0, 143, -signal.SIGTERM)


def test_order_is_kept_and_requests_go_side_by_side() -> None:
    reward, samples = First(0.02), pictures(60)
    with scoring(reward, workers=32) as url:
        assert RemoteReward([url], concurrency=8, batch=2).score(samples) == reds(samples)
        assert RemoteReward([url]).score([]) == []
    assert 4 <= reward.most <= 8


def test_what_cannot_be_had_is_missing() -> None:
    class Odd:
        def score(self, samples: Sequence[Sample]) -> list[float | None]:
            return [[None, float("nan"), 0.5][int(s.text.split()[-1]) % 3] for s in samples]

    with scoring(Odd()) as url:
        assert RemoteReward([url]).score(pictures(6)) == [None, None, 0.5] * 2


def test_one_sample_that_makes_the_reward_fail_is_missing_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_servers, "FIRST_REST", 0.01)

    class Fails(First):
        def score(self, samples: Sequence[Sample]) -> list[float | None]:
            if any(s.text == "number 5" for s in samples):
                raise ValueError("not this one")
            return super().score(samples)

    samples = pictures(12)
    with scoring(Fails()) as url:
        scores = RemoteReward([url], concurrency=3, batch=4).score(samples)
        alone = httpx.post(f"{url}/v1/score", **form(samples[5:6]))
    assert scores == [None if i == 5 else score for i, score in enumerate(reds(samples))]
    assert alone.status_code == 503
    assert alone.json()["error"]["message"] == "the reward failed: ValueError: not this one"


# --- servers that go and come -----------------------------------------------------------------------------------------

COUNTED = """
import sys, time
from pathlib import Path
import numpy as np
from unipic.serve.reward import serve_reward

class Counted:
    def score(self, samples):
        time.sleep(0.1)
        with Path(sys.argv[2]).open("a") as file:
            file.write("".join(s.text + "\\n" for s in samples))
        return [float(np.asarray(s.picture)[0, 0, 0]) for s in samples]

serve_reward(Counted(), "counted", "127.0.0.1", int(sys.argv[1]))
"""


def test_a_server_that_is_killed_loses_no_sample_and_is_used_again(tmp_path: Path) -> None:
    samples, books = pictures(64), [tmp_path / str(i) for i in range(3)]

    def counted(book: Path) -> int:
        return len(book.read_text().splitlines()) if book.exists() else 0

    with (
        process("-c", COUNTED, "0", str(books[0])) as (first, one),
        process("-c", COUNTED, "0", str(books[1])) as (
            _,
            other,
        ),
    ):
        reward = RemoteReward([one, other], concurrency=8, batch=1)

        def kill() -> None:
            while counted(books[0]) < 6:
                time.sleep(0.01)
            first.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        assert reward.score(samples) == reds(samples)
        killer.join()
        assert first.wait(5) == -signal.SIGKILL
        assert 6 <= counted(books[0]) < 40 <= counted(books[0]) + counted(books[1])
        with process("-c", COUNTED, one.rpartition(":")[2], str(books[2])):
            deadline = time.monotonic() + 60
            while not counted(books[2]) and time.monotonic() < deadline:
                assert reward.score(samples[:16]) == reds(samples[:16])
        assert counted(books[2])


def test_without_any_server_it_is_tried_later() -> None:
    urls = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as free:
            urls.append(f"http://127.0.0.1:{free.getsockname()[1]}")
    begun = time.monotonic()
    with pytest.raises(TryLater, match="no reward server has been well for 1 seconds") as failure:
        RemoteReward(urls, patience=1).score(pictures(20))
    assert 1 <= time.monotonic() - begun < 15
    assert failure.value.exit_code == 75
    assert all(url in failure.value.where for url in urls)
    assert "refused" in failure.value.where


def test_more_clients_than_a_server_has_room_for_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so before it reads their pictures, which are large enough to be under way then."""
    monkeypatch.setattr(serve, "MOST_PRESENT", 8)
    failed: list[str] = []
    monkeypatch.setattr(remote_servers.Server, "failed", lambda server, why: failed.append(why))
    samples = [Sample("", Image.new("RGB", (400, 400), (i, 0, 0))) for i in range(48)]
    with scoring(First(0.01)) as url:
        clients = [RemoteReward([url], concurrency=8, batch=2) for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            scores = [*pool.map(lambda client: client.score(samples), clients)]
    assert scores == [reds(samples)] * 4
    assert not failed
    assert any("429 too many requests are waiting" in client.servers[0].why for client in clients)
    assert all(client.servers[0].well for client in clients)


def test_a_server_that_never_has_room_is_tried_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "MOST_PRESENT", 0)
    with scoring(First()) as url, pytest.raises(TryLater, match="429 too many requests are waiting") as failure:
        RemoteReward([url], patience=0.5).score(pictures(40))
    assert failure.value.exit_code == 75


class Away(First):
    """It raises TryLater, as a judge does that is away, for as many calls."""

    def __init__(self, calls: float) -> None:
        super().__init__()
        self.calls = calls

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        with self.lock:
            self.calls -= 1
            if self.calls >= 0:
                raise TryLater("the judge has been away for 60 seconds", "http://judge: refused", "run it again")
        return super().score(samples)


def test_a_reward_that_is_tried_later_costs_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither while another server is well, nor alone and away for more requests than there are tries."""
    monkeypatch.setattr(remote_servers, "FIRST_REST", 0.01)
    samples = pictures(24)
    with scoring(Away(12)) as away, scoring(First(0.01)) as well:
        for urls in ([away, well], [away]):
            assert RemoteReward(urls, concurrency=2, batch=1).score(samples) == reds(samples)
    with scoring(Away(12)) as away:
        assert RemoteReward([away], concurrency=2, batch=1).score(samples) == reds(samples)


def test_a_reward_that_is_tried_later_ends_the_run_so(caplog: pytest.LogCaptureFixture) -> None:
    """Also where other requests are answered well, as a judge's are whose verdicts are in its cache."""
    known, asked = First(), Away(math.inf)
    caplog.set_level(logging.WARNING)  # a command that ran in this process has switched all logging off

    class Judge:
        def score(self, samples: Sequence[Sample]) -> list[float | None]:
            return (known if samples[0].text == "number 0" else asked).score(samples)

    with scoring(Judge()) as url:
        with pytest.raises(TryLater, match="the judge has been away") as failure:
            RemoteReward([url], patience=1, batch=1).score(pictures(20))
        said = httpx.post(f"{url}/v1/score", **form(pictures(2)[1:]))
    assert failure.value.exit_code == 75
    assert (said.status_code, said.json()["error"]["code"]) == (503, "try_later")
    assert "try later" in caplog.text
    assert "Traceback" not in caplog.text


def test_servers_with_different_rewards_are_refused() -> None:
    with (
        scoring(First(), "world 1") as one,
        scoring(First(), "world 2") as other,
        pytest.raises(BadInput, match="start them alike"),
    ):
        RemoteReward([one, other]).score(pictures(40))


def test_nothing_is_sent_before_every_server_has_said_what_its_reward_is() -> None:
    scored = First()
    late = reward_app(First(), "world 2")

    @late.middleware("http")
    async def slowly(request: Any, answer: Any) -> Any:
        await asyncio.sleep(1)
        return await answer(request)

    with (
        scoring(scored, "world 1") as one,
        serving(late) as other,
        pytest.raises(BadInput, match="start them alike"),
    ):
        RemoteReward([one, other]).score(pictures(40))
    assert scored.most == 0


def test_a_server_that_cannot_be_reached_holds_up_no_call_but_the_first() -> None:
    """Its machine is off: nothing answers a connect."""
    with scoring(First()) as well, unanswered() as away:
        reward = RemoteReward([well, away])
        reward.score(pictures(4))
        for server in reward.servers:
            server.rests_until = 0.0  # so that it is asked again during the next call
        start = time.monotonic()
        assert reward.score(pictures(4)) == reds(pictures(4))
        assert time.monotonic() - start < 2


# --- servers that answer something else -------------------------------------------------------------------------------

GARBAGE: dict[str, tuple[int, bytes]] = {
    "html": (200, b"<html><body>Welcome</body></html>"),
    "nothing": (200, b""),
    "too few": (200, b'{"scores": []}'),
    "too many": (200, b'{"scores": [0.5, 0.5]}'),
    "NaN": (200, b'{"scores": [NaN]}'),
    "infinite": (200, b'{"scores": [1e999]}'),
    "a text": (200, b'{"scores": ["0.5"]}'),
    "true": (200, b'{"scores": [true]}'),
    "a number": (200, b"0.5"),
    "cut": (200, b'{"scores": [0.5'),
    "deep": (200, b"[" * 50_000),
    "long": (200, b'{"scores": [0.5]}' + b" " * 10_000_000),
    "an error": (500, b"<h1>Internal Server Error</h1>"),
    "busy": (429, b""),
    "waiting": (503, b'{"error": {"message": "the judge is away", "code": "try_later"}}'),
    "an error of lists": (503, b'{"error": {"message": [], "code": []}}'),
    "elsewhere": (302, b""),
    "no such thing": (404, b""),
    "refused by another": (403, b"<h1>Forbidden</h1>"),
    "dropped": (0, b""),
    "slow": (-1, b'{"scores": [0.5]}'),
    "slow to begin": (-2, b""),
}


@contextmanager
def answering(status: int, content: bytes) -> Iterator[tuple[str, list[str]]]:
    """A server that is well by its own account; its address, and a list that grows with what it is asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send(200, b'{"status": "ok"}')

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(self.path)
            if status > 0:
                self.send(status, content)
            elif status < 0:
                for byte in b"HTTP/1.1 200 OK\r\n\r\n" + content if status == -1 else b"H" * 200:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.1)

        def send(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Location", "http://127.0.0.1:1/")
            self.end_headers()
            self.wfile.write(content)

        def handle(self) -> None:
            with suppress(OSError):  # the client hung up
                super().handle()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("kind", GARBAGE)
def test_other_answers_are_no_scores(kind: str) -> None:
    """Beside a server that is well all scores are right; alone there are none."""
    samples = pictures(12)
    with answering(*GARBAGE[kind]) as (bad, asked), scoring(First(0.02)) as good:
        assert RemoteReward([bad, good], timeout=1, concurrency=4, batch=1).score(samples) == reds(samples)
        assert asked
        begun = time.monotonic()
        with pytest.raises(TryLater, match=bad):
            RemoteReward([bad], timeout=0.5, patience=0.3, batch=1).score(samples[:2])
        assert time.monotonic() - begun < 10


def test_a_server_without_health_is_not_asked() -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>a router's page</html>")

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(TryLater, match="none of a reward server's"):
            RemoteReward([f"http://127.0.0.1:{server.server_port}"], patience=0.2).score(pictures(1))
        server.shutdown()


# --- what is sent -----------------------------------------------------------------------------------------------------


def form(samples: Sequence[Sample]) -> dict[str, Any]:
    kind, body = wire.request(samples)
    return {"content": body, "headers": {"Content-Type": kind}}


def test_specs_come_back_equal() -> None:
    for seed in range(60):
        rng, scene = np.random.default_rng(seed), sample(seed, ("train", "test")[seed % 2])
        edit = edits.sample(seed, ("train", "test")[seed % 2], edits.TYPES[seed % 12])
        for spec in (language.prompts(scene, rng), language.dense(scene, rng), scene, edit, {"text": "OPEN"}):
            told = specs.told(spec)
            assert told
            back = specs.read(json.loads(json.dumps(told)))
            assert back == spec
            assert type(back) is type(spec)


@pytest.mark.parametrize("spec", ["a text", 3, object(), {1: "a"}, {"a": (1,)}, {"a": float("nan")}, {"a": object()}])
def test_a_spec_that_cannot_be_sent_is_refused_before_anything_is(spec: Any) -> None:
    samples = [*pictures(3), replace(pictures(1)[0], spec=spec)]
    with pytest.raises(BadInput, match="cannot be sent to a remote reward"):
        RemoteReward(["http://127.0.0.1:1"]).score(samples)


def test_pictures_are_sent_without_loss_and_shared_ones_once() -> None:
    rng = np.random.default_rng(0)
    for width, height in ((8, 8), (37, 211), (300, 200), (64, 1000)):
        noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        samples = [Sample("é\ud800"[0], noise, noise), Sample("b", noise.rotate(180), noise)]
        kind, body = wire.request(samples)
        assert body.count(b"\x89PNG") == 2
        assert len(body) < 2.1 * 3 * width * height + 2000
        back = wire.samples(kind, body)
        assert [s.text for s in back] == ["é", "b"]
        for one, other in zip(samples, back, strict=True):
            assert np.array_equal(np.asarray(one.picture), np.asarray(other.picture))
            assert other.source is not None
            assert np.array_equal(np.asarray(noise), np.asarray(other.source))


FAULTS = """
import resource
from PIL import Image
from unipic.rewards import wire
from unipic.rewards.reward import Sample

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        wire.samples(*wire.request([Sample("", Image.new("RGB", (512, 512)))]))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 20

first = faults()
wire.keep_memory()
faults()
print(first, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_memory_of_pictures_is_kept_for_the_next() -> None:
    """Pages that are taken anew for a picture: 192 hold its bytes once."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    said = subprocess.run([sys.executable, "-c", FAULTS], env=env, capture_output=True, text=True, check=True)
    without, kept = map(int, said.stdout.split())
    assert kept < 20 < 192 < without


def test_requests_are_small_and_within_the_limits() -> None:
    reward = RemoteReward(["http://127.0.0.1:1"], concurrency=16, batch=4)
    for count, sizes in ((1, [1]), (16, [1] * 16), (40, [2] * 20), (70, [4] * 17 + [2])):
        assert [len(portion) for portion in reward.portions(pictures(count))] == sizes
    large = Image.new("RGB", (2048, 2048))
    portions = [*RemoteReward(["http://a"], concurrency=1, batch=64).portions([Sample("", large)] * 8)]
    assert [len(portion) for portion in portions] == [3, 3, 2]
    assert len(wire.request([Sample("", large.rotate(angle)) for angle in (0, 90, 180)])[1]) < wire.MOST_BODY


def multipart(*parts: tuple[str, bytes], boundary: str = "b") -> bytes:
    heads = (f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() for name, _ in parts)
    return b"".join(head + content + b"\r\n" for head, (_, content) in zip(heads, parts, strict=True)) + b"--b--\r\n"


def asking(**fields: Any) -> bytes:
    return json.dumps({"samples": [{"text": "a", "picture": 0, **fields}]}).encode()


PNG = b"".join(wire._png(Image.new("RGB", (16, 16))))
SCENE = json.loads(json.dumps(specs.told(sample(1, "train"))))
DENSE = json.loads(json.dumps(specs.told(language.dense(sample(1, "train"), np.random.default_rng(0)))))
EDIT = json.loads(json.dumps(specs.told(edits.sample(1, "train"))))
PROMPT = json.loads(json.dumps(specs.told(language.prompts(sample(1, "train"), np.random.default_rng(0)))))


def spoilt(spec: dict[str, Any], *path: str | int, to: Any) -> bytes:
    """A request whose spec has another value there."""
    copy = json.loads(json.dumps(spec))
    spot = copy
    for step in path[:-1]:
        spot = spot[step]
    spot[path[-1]] = to
    return multipart(("request", asking(spec=copy)), ("picture", PNG))


BAD = {
    "nothing": b"",
    "no form": b"hello",
    "no end": multipart(("request", asking()), ("picture", PNG))[:-6],
    "no parts": b"--b--\r\n",
    "no request": multipart(("picture", PNG)),
    "a part too many": multipart(("request", asking()), ("picture", PNG), ("more", b"")),
    "a part without a name": b"--b\r\n\r\n{}\r\n--b\r\n\r\n\r\n--b--",
    "a thousand parts": multipart(("request", asking()), *[("picture", PNG)] * 1000),
    "no JSON": multipart(("request", b"{"), ("picture", PNG)),
    "deep JSON": multipart(("request", b"[" * 100_000), ("picture", PNG)),
    "no samples": multipart(("request", b'{"samples": []}'), ("picture", PNG)),
    "an unknown key": multipart(("request", asking(seed=1)), ("picture", PNG)),
    "a text that is none": multipart(("request", asking(text=1)), ("picture", PNG)),
    "no such picture": multipart(("request", asking(picture=1)), ("picture", PNG)),
    "no such source": multipart(("request", asking(source=9)), ("picture", PNG)),
    "a negative picture": multipart(("request", asking(picture=-1)), ("picture", PNG)),
    "a picture that is none": multipart(("request", asking()), ("picture", b"GIF89a")),
    "half a picture": multipart(("request", asking()), ("picture", PNG[: len(PNG) // 2])),
    "a spec of no kind": multipart(("request", asking(spec={"value": {}})), ("picture", PNG)),
    "a spec of another kind": multipart(("request", asking(spec={"kind": "os", "value": {}})), ("picture", PNG)),
    "a spec's unknown key": spoilt(SCENE, "value", "seed", to=1),
    "an unknown shape": spoilt(SCENE, "value", "objects", 0, "shape", to="zebra"),
    "an object outside": spoilt(SCENE, "value", "objects", 0, "x", to=10**9),
    "a size of its own": spoilt(SCENE, "value", "width", to=10**6),
    "no objects": spoilt(SCENE, "value", "objects", to=[]),
    "a number as text": spoilt(SCENE, "value", "width", to="64"),
    "no questions": spoilt(DENSE, "value", "questions", to=[]),
    "a question of no clause": spoilt(DENSE, "value", "questions", 0, "wanted", to={"all": 1}),
    "an unknown place": spoilt(DENSE, "value", "questions", 2, "wanted", "what", "place", to="nowhere"),
    "a question before its parent": spoilt(DENSE, "value", "questions", 0, "dependencies", to=[5, 0]),
    "an edit of nothing": spoilt(EDIT, "value", "free", to=[99]),
    "a count of none": spoilt(PROMPT, "value", "include", 0, "count", to=0),
    "a relation to nobody": spoilt(PROMPT, "value", "include", 0, "position", to=["left of", 3]),
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with scoring(WorldReward(), "world") as address:
        yield address


@pytest.mark.parametrize("name", BAD)
def test_malformed_requests_are_told_why(url: str, name: str) -> None:
    said = httpx.post(f"{url}/v1/score", content=BAD[name], headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert said.status_code == 400, said.text
    assert 10 < len(said.json()["error"]["message"]) < 800


def test_a_form_that_another_client_writes_is_read(url: str) -> None:
    scene = sample(1, "train")
    files = [("request", (None, asking(spec=SCENE)))]
    whole = b"".join(wire._png(render(scene)))
    said = httpx.post(f"{url}/v1/score", files=[*files, ("picture", ("p.png", whole, "image/png"))])
    assert said.json() == {"scores": [1.0]}
    assert httpx.post(f"{url}/v1/score", json={}).status_code == 400
    assert httpx.get(f"{url}/v1/score").status_code == 405


def test_large_bodies_are_refused(url: str) -> None:
    said = httpx.post(f"{url}/v1/score", content=b" " * (wire.MOST_BODY + 1), timeout=60)
    assert said.status_code == 413
    assert said.json()["error"]["message"] == "the body is larger than 64 MB"
    with pytest.raises(BadInput, match="larger than 64 MB"):
        RemoteReward([url]).score([Sample("", Image.new("RGB", (4700, 4700)))])


# --- models that several requests want at once ------------------------------------------------------------------------


class Alone:
    """In place of a model and what loads it: slow, and it notes how many are in it at a time, and how often."""

    def __init__(self) -> None:
        self.loaded, self.inside, self.most = 0, 0, 0

    def load(self) -> None:
        self.loaded += 1
        time.sleep(0.05)

    def compute(self) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        time.sleep(0.01)
        self.inside -= 1


def test_the_detector_is_loaded_once_and_computes_for_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Alone()

    class Model(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            alone.compute()
            return torch.zeros(len(pixels), 1, len(detector.CLASSES) + 1), torch.zeros(len(pixels), 1, 8, 8)

    def load(_: Any) -> torch.nn.Module:
        alone.load()
        return Model()

    monkeypatch.setattr(detector, "find_part", lambda *_: None)
    monkeypatch.setattr(detector, "load_segmenter", load)
    detect = detector.Detector("one", device="cpu", shorter=32, longer=64)
    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(lambda s: detect([s.picture]), pictures(16))] == [[[]]] * 16
    assert (alone.loaded, alone.most) == (1, 1)


def test_colours_are_loaded_once_and_computed_for_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Alone()

    def features(inputs: torch.Tensor) -> SimpleNamespace:
        alone.compute()
        return SimpleNamespace(pooler_output=torch.ones(len(inputs), 4))

    def load(_: Any) -> colors.Clip:
        alone.load()
        sizes = {
            "vision_config": SimpleNamespace(image_size=8),
            "text_config": SimpleNamespace(max_position_embeddings=8),
        }
        model = torch.nn.Module()
        model.config, model.get_image_features, model.get_text_features = SimpleNamespace(**sizes), features, features
        return colors.Clip(model, None)

    monkeypatch.setattr(colors, "find_part", lambda *_: None)
    monkeypatch.setattr(colors, "load_clip", load)
    monkeypatch.setattr(colors, "token_ids", lambda _, texts, length: torch.zeros(len(texts), length))
    name = colors.Colors("one", device="cpu")
    objects = [(s.picture, Detection("dog", (0, 0, 8, 8), 0.9)) for s in pictures(16)]
    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(lambda one: name([one]), objects)] == [["red"]] * 16
    assert (alone.loaded, alone.most) == (1, 1)


# --- configuration ----------------------------------------------------------------------------------------------------


def test_a_recipe_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = {"kind": "remote", "urls": ["http://10.0.0.1:8002/", "https://host/scores"], "key_env": "SOME_KEY"}
    config = resolve(RemoteRewardConfig, raw, "recipe")
    with pytest.raises(BadInput, match="SOME_KEY"):
        config.open()
    monkeypatch.setenv("SOME_KEY", KEY)
    opened = config.open()
    assert [server.url for server in opened.servers] == ["http://10.0.0.1:8002", "https://host/scores"]
    assert opened.headers == {"Authorization": "Bearer a-key"}


@pytest.mark.parametrize("key", ["sec\rret", "sec ret", "secret\x00", "s\N{LATIN SMALL LETTER E WITH ACUTE}cret", "\r"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve(RemoteRewardConfig, {"kind": "remote", "urls": ["http://a"], "key_env": "SOME_KEY"}, "recipe")
    monkeypatch.setattr(os, "environ", {"SOME_KEY": key})  # which would not take the zero byte itself
    for opened in (config.open, lambda: RemoteReward(["http://a"], key)):
        with pytest.raises(BadInput, match="key") as failure:
            opened()
        assert "ret" not in str(failure.value)


def test_a_key_is_stripped_as_files_end_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", f"{KEY}\r\n")
    raw = {"kind": "remote", "urls": ["http://a"], "key_env": "SOME_KEY"}
    assert resolve(RemoteRewardConfig, raw, "recipe").open().headers == {"Authorization": f"Bearer {KEY}"}


def test_failures_do_not_repeat_what_was_sent() -> None:
    """A header that cannot be sent, and a server that repeats the key."""
    reply = json.dumps({"error": {"message": f"what is {KEY}?"}}).encode()
    for status in (401, 500):
        with answering(status, reply) as (url, _):
            connections = Connections(threading.Event(), RemoteReward([url]).ssl)
            with pytest.raises(NoAnswer) as unsent:
                connections.exchange(urlsplit(url), "GET", "/health", 5, headers={"Authorization": "sec\rret"})
            assert str(unsent.value) == "ValueError"
            with pytest.raises((BadInput, TryLater), match="what is …") as failure:
                RemoteReward([url], KEY, patience=0.2).score(pictures(1))
            assert KEY not in str(failure.value)


def test_the_server_scores_as_many_requests_as_a_client_sends() -> None:
    sent = inspect.signature(RemoteReward).parameters["concurrency"].default
    assert RemoteRewardConfig.model_fields["concurrency"].default == sent
    for server in (serve.reward_app, serve.serve_reward, cli.serve_reward):
        assert inspect.signature(server).parameters["workers"].default == sent


def test_a_header_has_an_end() -> None:
    """Also where uvicorn finds a parser that sets none: it comes before the key."""
    with process("-m", "unipic.cli", "serve-reward", "world", "--port", "0") as (_, address):
        assert httpx.get(f"{address}/health", headers={"x": "y" * 1000}).status_code == 200
        try:
            status = httpx.get(f"{address}/health", headers={"x": "y" * 1_000_000}).status_code
        except httpx.TransportError:  # it hangs up on what is still coming
            status = 400
        assert status == 400


def test_a_host_that_is_not_ours_is_told_apart_from_a_port_that_is_taken() -> None:
    for host in ("no-such-host.invalid", "192.0.2.1", "a" * 300, "::g"):
        with pytest.raises(BadInput, match="give --host an address of this machine"):
            serve.serve_reward(First(), "first", host, 0)
        with pytest.raises(BadInput, match="give --host an address of this machine"):
            serve_judge(host, 0)
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(UnipicError, match="choose another port"),
    ):
        serve.serve_reward(First(), "first", "127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize(
    "fields",
    [
        {"urls": []},
        {"urls": "http://a:1"},
        {"urls": ["a:8002"]},
        {"urls": ["ftp://a"]},
        {"urls": ["http://"]},
        {"urls": ["http://a:99999"]},
        {"urls": ["http://a?b=c"]},
        {"urls": ["http://user:secret@a"]},
        {"urls": ["http://a", "http://a/"]},
        {"urls": ["http://a"], "key": "secret"},
        {"urls": ["http://a"], "key_env": "a key"},
        {"urls": ["http://a"], "timeout": 0},
        {"urls": ["http://a"], "patience": -1},
        {"urls": ["http://a"], "concurrency": 0},
        {"urls": ["http://a"], "batch": 65},
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        resolve(RemoteRewardConfig, {"kind": "remote", **fields}, "recipe")
