"""A judge over HTTP as a reward: no invented score, each verdict used once, a good end of outages and budgets.

The judge is the world's own, a real process which spoils its answers in fourteen ways; what it would say unspoilt is
computed beside it.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import os
import re
import signal
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from tests.runs import GRPO, Child, command, files, recipe, records
from unipic.config import resolve
from unipic.errors import BadInput, TryLater, UnipicError
from unipic.rewards.judge import MOST_UNREAD, JudgeReward, JudgeRewardConfig, score_of
from unipic.rewards.judge_cache import JudgeCache, key_of
from unipic.rewards.judge_calls import MOST_REPLY
from unipic.rewards.judge_limits import Outage
from unipic.rewards.judge_reply import BadReply, Declined, Usage, Verdict, completion_of, verdict_of
from unipic.rewards.reward import Sample
from unipic.serve import judgement
from unipic.serve.faults import KINDS, Faults
from unipic.serve.judge import MODEL
from unipic.train.edit_scores import make_scores
from unipic.train.policy import advantages
from unipic.train.stages import read
from unipic.world import edits, language
from unipic.world.render import render
from unipic.world.scene import sample as scene_of

KEY = "sk-very/secret+42"
SIZE = (64, 64)
MARKS = ("instruction_following", "quality")


def edit_of(seed: int) -> Sample:
    """An edit that was done, was left undone, or was done on one half of the picture, with a smear on it."""
    edit = edits.sample(seed, "train", edits.TYPES[seed % 12], size=SIZE)
    source, target = render(edit.source), render(edit.target)
    half = target.copy()
    half.paste(source.crop((0, 0, 32, 64)))
    left, top, right, bottom = edit.target.objects[0].box
    half.paste((90, 90, 90), (left, top, (left + right) // 2, top + 1 + seed % max(1, (bottom - top) // 2)))
    return Sample(edit.instruction, (target, source, half)[seed % 3], source)


def prompts(count: int) -> list[Sample]:
    made, rng = list[Sample](), np.random.default_rng(0)
    for seed in range(100):
        scene = scene_of(seed, "train", size=SIZE)
        prompt = language.prompt(scene, language.TAGS[seed % 6], rng)
        if prompt is not None:
            shown = scene if seed % 2 else scene_of(seed + 500, "train", size=SIZE)
            made.append(Sample(prompt.text, render(shown)))
    return made[:count]


def genuine(sample: Sample) -> float | None:
    """What the judge says of it when nothing goes wrong, as a score."""
    label = "Prompt" if sample.source is None else "Instruction"
    pictures = [picture for picture in (sample.source, sample.picture) if picture is not None]
    judged = judgement.judge([[f"{label}: {sample.text}"]], pictures)
    marks = [None if mark is None else round(mark, 2) for mark in (judged.fit, judged.quality)]
    return None if marks[0] is None or marks[1] is None else math.sqrt(marks[0] * marks[1]) / 10


# --- the judge's process ----------------------------------------------------------------------------------------------


class Judge:
    """`unipic world judge` in a process of its own, which has seen the world before: its first answer is not slow."""

    def __init__(self, folder: Path, *options: object) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"
        self.child = command(folder, "world", "judge", "--port", port, "--api-key", KEY, *options)
        for _ in range(600):
            with suppress(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{port}/health")
                return
            time.sleep(0.1)
        self.kill()
        raise AssertionError(self.child.texts[1].read_text())

    def ledger(self) -> dict[str, Any]:
        address = self.url.removesuffix("/v1") + "/ledger"
        told: dict[str, Any] = httpx.get(address, headers={"Authorization": f"Bearer {KEY}"}, timeout=60).json()
        return told

    def kill(self) -> None:
        os.kill(self.child.pid, signal.SIGKILL)
        self.child.end()


@contextmanager
def judging(folder: Path, *options: object) -> Iterator[Judge]:
    genuine(edit_of(0))
    judge = Judge(folder, *options)
    try:
        yield judge
    finally:
        judge.kill()


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    """One that makes no mistakes."""
    with judging(tmp_path_factory.mktemp("judge")) as judge:
        yield judge


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)


def raw_of(url: str, **changes: Any) -> dict[str, Any]:
    raw = {"kind": "judge", "model": MODEL, "base_url": url, "key_env": "JUDGE_KEY", "wait": 0.05}
    return raw | {"timeout": 20, "patience": 30, "deadline": 60} | changes


def reward_of(url: str, **changes: Any) -> JudgeReward:
    reward = resolve(JudgeRewardConfig, raw_of(url, **changes), "the test's recipe").open()
    assert isinstance(reward, JudgeReward)
    return reward


def seed_with_all_kinds(calls: int) -> int:
    """Of faults of which each comes within so many calls."""
    return next(s for s in range(99) if {Faults(0.3, s).of(call) for call in range(1, calls)} >= {*KINDS})


def calls_for(verdicts: int, seed: int) -> int:
    """So many calls bring so many verdicts; a fenced answer with its keys reversed is as valid as any."""
    well = (call for call in itertools.count(1) if Faults(0.3, seed).of(call) in (None, "reordered"))
    return next(itertools.islice(well, verdicts - 1, None))


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "calls"),
    [(108, 150), pytest.param(1404, 2000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])],
)
def test_no_score_is_invented_and_each_verdict_is_used_once(count: int, calls: int, tmp_path: Path) -> None:
    samples = [edit_of(seed) for seed in range(count)]
    wanted = [genuine(sample) for sample in samples]
    assert None not in wanted
    assert min(w for w in wanted if w is not None) == 0
    assert len(set(wanted)) > 5
    seed = seed_with_all_kinds(140)
    options = ("--faults", 0.3, "--fault-seed", seed, "--ledger", tmp_path / "ledger.jsonl")
    with judging(tmp_path, *options) as judge:
        reward = reward_of(judge.url, timeout=6)
        scores = reward.score(samples)
        told = judge.ledger()
    assert scores == wanted
    assert told["faults"].keys() == {*KINDS}
    assert told["answers"] + told["faults"]["reordered"] == count
    assert told["calls"] == told["answers"] + sum(told["faults"].values())
    spent = reward.told()
    assert (spent["calls"], spent["calls"] - spent["failed"]) == (told["calls"], count)
    assert told["calls"] == calls_for(count, seed) >= calls
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert len(lines) == told["calls"]


def test_several_choices_are_averaged_and_their_order_is_no_matter(tmp_path: Path) -> None:
    samples = [edit_of(seed) for seed in range(12)]
    with judging(tmp_path, "--faults", 0.3, "--fault-seed", 5) as judge:
        scores = reward_of(judge.url, n=3, timeout=6, temperature=1.0).score(samples)
        told = judge.ledger()
    assert scores == pytest.approx([genuine(sample) for sample in samples])
    assert told["answers"] + told["faults"].get("reordered", 0) == len(samples)


def test_what_cannot_be_had_is_none(tmp_path: Path) -> None:
    """Every call is spoilt; what is right in spite of that is out of order, and nothing else."""
    samples = [edit_of(seed) for seed in range(16)]
    with judging(tmp_path, "--faults", 1.0) as judge:
        reward = reward_of(judge.url, timeout=1, patience=4, deadline=4, concurrency=16)
        begun = time.monotonic()
        scores = reward.score(samples)
        assert time.monotonic() - begun < 20
        told = judge.ledger()
    assert None in scores
    known = [(score, sample) for score, sample in zip(scores, samples, strict=True) if score is not None]
    assert [score for score, _ in known] == [genuine(sample) for _, sample in known]
    assert len(known) <= told["faults"].get("reordered", 0)
    assert told["answers"] == 0


def test_advantages_are_those_of_the_members_that_have_scores(judge: Judge) -> None:
    """Of groups of eight 0, 1, 3 and 5 members are asked for what the judge does not understand."""
    groups = []
    for group, mute in enumerate((0, 1, 3, 5)):
        edit = edits.sample(group, "train", edits.TYPES[group], size=SIZE)
        shown = [edit.target, edit.source, *(scene_of(group * 10 + i, "test", size=SIZE) for i in range(6))]
        texts = ["paint the town red" if i < mute else edit.instruction for i in range(8)]
        groups += [Sample(t, render(s), render(edit.source)) for t, s in zip(texts, shown, strict=True)]
    scores = reward_of(judge.url).score(groups)
    assert scores == [genuine(sample) for sample in groups]
    rewards = torch.tensor([math.nan if s is None else s for s in scores]).view(4, 8)
    found = advantages(rewards)
    for row, got in zip(rewards.tolist(), found.tolist(), strict=True):
        valid = [r for r in row if not math.isnan(r)]
        mean = sum(valid) / len(valid)
        spread = math.sqrt(sum((r - mean) ** 2 for r in valid) / len(valid))
        dropped = len(valid) < 4 or spread < 1e-6
        for r, advantage in zip(row, got, strict=True):
            if math.isnan(r) or dropped:
                assert math.isnan(advantage)
            else:
                assert advantage == pytest.approx((r - mean) / spread, abs=1e-5)
    assert found[3].isnan().all()
    assert not found[0].isnan().any()


def test_prompts_are_judged_by_their_own_template(judge: Judge) -> None:
    samples = prompts(10)
    scores = reward_of(judge.url).score(samples)
    assert scores == [genuine(sample) for sample in samples]
    assert {0.0, 1.0} <= {*scores}


def test_weights_in_place_of_the_geometric_mean(judge: Judge) -> None:
    samples = [edit_of(seed) for seed in range(3)]
    weights = {"instruction_following": 3.0, "quality": 1.0, "alignment": 1.0}
    scores = reward_of(judge.url, weights=weights).score(samples)
    for sample, score in zip(samples, scores, strict=True):
        assert sample.source is not None
        judged = judgement.judge([[f"Instruction: {sample.text}"]], [sample.source, sample.picture])
        assert judged.fit is not None
        assert score == pytest.approx((3 * round(judged.fit, 2) + round(judged.quality, 2)) / 40)
    assert score_of({"a": 10.0, "b": None}, None) is None
    assert score_of({"a": 8.0, "b": 2.0}, None) == 0.4


# --- replies ----------------------------------------------------------------------------------------------------------

GOOD = {"reasons": "as asked", "instruction_following": 9.5, "quality": 8}
SPOILT = {
    "html": "<!doctype html><h1>Welcome</h1>",
    "truncated": '{"instruction_following":',
    "fraction": json.dumps(GOOD | {"quality": "9.5/10"}),
    "a text": json.dumps(GOOD | {"quality": "9.5"}),
    "nan": json.dumps(GOOD | {"quality": math.nan}),
    "infinity": json.dumps(GOOD | {"quality": math.inf}),
    "1e999": json.dumps(GOOD).replace("9.5", "1e999"),
    "eleven": json.dumps(GOOD | {"quality": 11}),
    "negative": json.dumps(GOOD | {"quality": -1}),
    "true": json.dumps(GOOD | {"quality": True}),
    "a list": json.dumps(GOOD | {"quality": [8]}),
    "fewer": json.dumps({key: GOOD[key] for key in ("reasons", "quality")}),
    "more": json.dumps(GOOD | {"overall": 3}),
    "twice": json.dumps(GOOD)[:-1] + ', "quality": 3}',
    "two answers": json.dumps(GOOD) + json.dumps(GOOD),
    "words around": f"Here it is: {json.dumps(GOOD)}",
    "two fences": f"```json\n{json.dumps(GOOD)}\n```\n```json\n{json.dumps(GOOD)}\n```",
    "deep": "[" * 100_000,
    "digits": json.dumps(GOOD).replace("9.5", "9" * 10_000),
    "a number": "9.5",
    "nothing": "",
}


@pytest.mark.parametrize("content", SPOILT.values(), ids=SPOILT)
def test_a_spoilt_answer_is_no_verdict(content: str) -> None:
    with pytest.raises(BadReply):
        verdict_of(content, MARKS)


@pytest.mark.parametrize("form", ["{}", " {}\n", "```json\n{}\n```", "```\n{}\n```\n"])
def test_what_says_the_same_is_taken(form: str) -> None:
    for said in (GOOD, dict(reversed([*GOOD.items()]))):
        found = verdict_of(form.format(json.dumps(said)), MARKS)
        assert found == Verdict({"instruction_following": 9.5, "quality": 8.0}, "as asked")


def reply(*contents: str, **changes: Any) -> bytes:
    choices = [{"index": i, "message": {"content": c}} for i, c in enumerate(contents)]
    return json.dumps({"choices": choices, **changes}).encode()


def test_choices_are_all_there_or_it_is_no_reply() -> None:
    other = json.dumps(GOOD | {"quality": 1})
    two = json.loads(reply(json.dumps(GOOD), other))["choices"]
    turned = completion_of(json.dumps({"choices": two[::-1]}).encode()).verdicts(MARKS, 2)
    assert [verdict.marks["quality"] for verdict in turned] == [8, 1]
    bad: list[Any] = [[], two[:1], two + two[:1], [two[0], two[0]], [two[0], None], [two[0], {"index": 1}]]
    bad += [[two[0], {"index": "1", "message": two[1]["message"]}], [two[0], {"index": 1, "message": {"content": 3}}]]
    for choices in bad:
        with pytest.raises(BadReply):
            completion_of(json.dumps({"choices": choices}).encode()).verdicts(MARKS, 2)
    for body in (b"", b"null", b"[]", b'{"choices": 3}', b"\xff", b"<html>"):
        with pytest.raises(BadReply):
            completion_of(body)
    for refusal in (
        {"message": {"refusal": "no", "content": None}},
        {"message": {}, "finish_reason": "content_filter"},
    ):
        with pytest.raises(Declined):
            completion_of(json.dumps({"choices": [{"index": 0, **refusal}]}).encode()).verdicts(MARKS, 1)


@pytest.mark.parametrize("usage", [None, 3, {}, {"prompt_tokens": "9", "completion_tokens": 1}, {"prompt_tokens": -1}])
def test_usage_is_counted_only_where_it_is_told(usage: Any) -> None:
    assert completion_of(reply("", usage=usage)).usage is None
    told = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    assert completion_of(reply("", usage=told)).usage == Usage(7, 2)


# --- away -------------------------------------------------------------------------------------------------------------


def test_a_judge_that_is_away_ends_the_scoring_once_patience_ends() -> None:
    reward = reward_of("http://127.0.0.1:9/v1", timeout=0.9, patience=1, deadline=30)
    begun = time.monotonic()
    with pytest.raises(TryLater, match=r"the judge has been away for \d seconds\nhttp://127\.0\.0\.1:9/v1: ") as told:
        reward.score([edit_of(seed) for seed in range(3)])
    assert 1 <= time.monotonic() - begun < 15
    assert told.value.exit_code == 75
    with pytest.raises(TryLater):  # at once: nothing has come since
        reward.score([edit_of(0)])


def test_an_answer_ends_an_outage_and_older_calls_do_not_begin_one() -> None:
    outage = Outage(0.2, "there")
    begun = time.monotonic() - 10
    outage.answered()
    outage.failed(begun, "stalled")
    outage.failed(time.monotonic(), "refused")
    time.sleep(0.25)
    outage.answered()
    outage.failed(time.monotonic(), "refused")
    time.sleep(0.25)
    with pytest.raises(TryLater, match="there: refused again"):
        outage.failed(time.monotonic(), "refused again")


def test_calls_keep_their_pace(judge: Judge) -> None:
    reward = reward_of(judge.url, requests_per_minute=240)
    begun = time.monotonic()
    reward.score([edit_of(seed) for seed in range(5)])
    assert time.monotonic() - begun >= 4 * 60 / 240


def test_a_run_whose_judge_dies_pauses_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    genuine(edit_of(0))
    raw = GRPO | {"steps": 3, "checkpoint_every": 0, "sample_every": 0, "show": {"count": 0}}
    raw["data"] = raw["data"] | {"tasks": ["edit"]}
    judge = Judge(tmp_path)
    cache = tmp_path / "judge.sqlite"
    told = raw_of(judge.url, timeout=5, patience=6, prices=[1.0, 2.0], cache=str(tmp_path / "whole.sqlite"))
    rewards = raw["rewards"] | {"judge": told}
    try:
        whole, run = tmp_path / "whole", tmp_path / "run"
        line = recipe(tmp_path, raw, rewards=rewards)
        ended = command(tmp_path, "train", line, "--run-dir", whole).end()
        assert (ended.code, ended.err) == (0, "")
        assert all(record["reward/judge/calls"] == 8 for record in records(whole))
        assert all(record["reward/judge/cost"] > 0 for record in records(whole))
        line = recipe(tmp_path, raw, rewards=rewards | {"judge": told | {"cache": str(cache)}})
        child = command(tmp_path, "train", line, "--run-dir", run)
        while not ((run / "log.jsonl").exists() and (run / "log.jsonl").read_text()):
            time.sleep(0.01)
        judge.kill()
        paused = child.end()
        assert paused.code == 75, paused
        assert len(paused.err.splitlines()) == 3
        assert "the judge has been away" in paused.err
        done = sorted((run / "checkpoints").iterdir())
        assert len(done) == 1
        assert str(done[0]) in paused.err
        again = command(tmp_path, "train", line, "--run-dir", run).end()  # still away: nothing is lost
        assert (again.code, sorted((run / "checkpoints").iterdir())) == (75, done)
        judge = Judge(tmp_path)  # and now it is somewhere else
        line = recipe(tmp_path, raw, rewards=rewards | {"judge": told | {"cache": str(cache), "base_url": judge.url}})
        ended = command(tmp_path, "train", line, "--run-dir", run).end()
        assert (ended.code, ended.err) == (0, "")
    finally:
        judge.kill()
    assert files(run, 3)["model/manifest.json"] == files(whole, 3)["model/manifest.json"]
    assert files(run, 3) == files(whole, 3)
    calls = {"reward/judge/calls", "reward/judge/cached", "reward/judge/failed", "reward/judge/cost"}
    calls |= {"reward/judge/prompt_tokens", "reward/judge/completion_tokens"}
    without = [[{k: v for k, v in r.items() if k not in calls} for r in records(each)] for each in (run, whole)]
    assert without[0] == without[1]
    assert [record["step"] for record in records(run)] == [1, 2, 3]
    written = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len([p for p in written if p.name.startswith("judge.sqlite")]) >= 1
    for path in written:
        assert KEY.encode() not in path.read_bytes(), path


# --- a server with a mind of its own ----------------------------------------------------------------------------------


class Watch:
    """What a server was asked, and the most calls that were there at a time. It answers as their words ask for.

    Each call is held until so many are there together, or `hold` seconds have passed.
    """

    def __init__(self, together: int, hold: float) -> None:
        self.requests, self.here, self.most = list[dict[str, Any]](), 0, 0
        self.together, self.hold, self.changed = together, hold, threading.Condition()

    def answer(self, body: bytes) -> bytes:
        request = json.loads(body)
        with self.changed:
            self.requests.append(request)
            self.here += 1
            self.most = max(self.most, self.here)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.most >= self.together, self.hold)
            self.here -= 1
        marks = re.findall(r'^"(\w+)": a number, 0 to 10\.', request["messages"][0]["content"], re.MULTILINE)
        return reply(json.dumps({"reasons": "", **dict.fromkeys(marks, 4)}), **USED)


class Server(ThreadingHTTPServer):
    request_queue_size = 256


@contextmanager
def answering(
    *answers: tuple[int, dict[str, str], bytes], watch: Watch | None = None
) -> Iterator[tuple[str, list[float]]]:
    """A server that gives these answers in turn, the last again and again; its address, and when it was asked."""
    asked: list[float] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers, body = answers[min(len(asked), len(answers) - 1)]
            asked.append(time.monotonic())
            body = watch.answer(sent) if watch else body
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


USED = {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}
FINE = (200, {}, reply(json.dumps(GOOD), **USED))
SCORE = math.sqrt(9.5 * 8) / 10


def test_a_judge_says_when_to_come_back() -> None:
    with answering((429, {"Retry-After": "1"}, b"{}"), FINE) as (url, asked):
        assert reward_of(url).score([edit_of(0)]) == [pytest.approx(SCORE)]
    assert asked[1] - asked[0] >= 1


def test_an_account_without_money_pauses_the_run_at_once() -> None:
    spent = {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}
    with answering((429, {}, json.dumps(spent).encode())) as (url, asked):
        with pytest.raises(TryLater, match="no money left"):
            reward_of(url, concurrency=1).score([edit_of(0), edit_of(1)])
        assert len(asked) == 1

    with answering((402, {}, b"{}")) as (url, asked):
        with pytest.raises(TryLater, match="no money left"):
            reward_of(url).score([edit_of(0)])
        assert len(asked) == 1


@pytest.mark.parametrize(
    ("status", "what"), [(401, "does not take the key"), (403, "does not take the key"), (404, "is not there")]
)
def test_what_bars_a_judge_that_was_heard_pauses_the_run(status: int, what: str, tmp_path: Path) -> None:
    """What the cache knows is no sign of that: a new start may have another key, and another address."""
    path = str(tmp_path / "judge.sqlite")
    with answering(FINE, (status, {}, b"{}")) as (url, asked):
        reward = reward_of(url, cache=path)
        assert reward.score([edit_of(0)]) == [pytest.approx(SCORE)]
        with pytest.raises(TryLater, match=f"the judge {what} any more\n") as told:
            reward.score([edit_of(1)])
        assert (told.value.exit_code, len(str(told.value).splitlines())) == (75, 3)
        with pytest.raises(BadInput, match=f"the judge {what}\n"):
            reward_of(url, cache=path, concurrency=1).score([edit_of(0), edit_of(1)])
        assert len(asked) == 3


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(FINE) as (url, asked), answering(FINE) as (proxy, passed):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.removesuffix("/v1"))
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        assert reward_of(url).score([edit_of(0)]) == [pytest.approx(SCORE)]
    assert (len(asked), passed) == (1, [])


def test_no_redirect_is_followed() -> None:
    with answering(FINE) as (other, elsewhere), answering((307, {"Location": other}, b"")) as (url, asked):
        with pytest.raises(BadInput, match="the judge is not there"):
            reward_of(url).score([edit_of(0)])
        assert (len(asked), elsewhere) == (1, [])


def test_what_is_too_long_or_packed_is_asked_for_again() -> None:
    huge, packed = b" " * (MOST_REPLY + 1), gzip.compress(reply(json.dumps(GOOD)))
    with answering((200, {}, FINE[2] + huge), (500, {}, huge), (200, {"Content-Encoding": "gzip"}, packed), FINE) as (
        url,
        asked,
    ):
        reward = reward_of(url)
        assert reward.score([edit_of(0)]) == [pytest.approx(SCORE)]
    assert (len(asked), reward.told()["failed"]) == (4, 3)


def test_a_key_that_the_server_repeats_is_not_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "judge.sqlite"
    echo = json.dumps(GOOD | {"reasons": f"you said {KEY}"})
    with answering((200, {}, reply(echo, **USED))) as (url, _):
        assert reward_of(url, cache=str(path)).score([edit_of(0)]) == [pytest.approx(SCORE)]
    rows = sqlite3.connect(path).execute("SELECT row FROM verdicts").fetchall()
    assert "you said" in rows[0][0]
    assert KEY not in rows[0][0]
    error = {"error": {"message": f"no such thing: {KEY}"}}
    with answering((400, {}, json.dumps(error).encode())) as (url, _):
        with pytest.raises(BadInput, match="no such thing: …") as told:
            reward_of(url).score([edit_of(0)])
        assert KEY not in str(told.value)


def test_one_sample_that_is_refused_is_missing_among_others() -> None:
    with answering(FINE, (400, {}, b"{}"), FINE) as (url, _):
        scores = reward_of(url, concurrency=1).score([edit_of(seed) for seed in range(3)])
    assert scores == [pytest.approx(SCORE), None, pytest.approx(SCORE)]


def test_a_refused_sample_is_missing_too_once_all_others_are_known(tmp_path: Path) -> None:
    samples, path = [edit_of(seed) for seed in range(3)], str(tmp_path / "judge.sqlite")
    with answering(FINE, (400, {}, b"{}"), FINE, (400, {}, b"{}")) as (url, asked):
        first, again = (reward_of(url, cache=path, concurrency=1).score(samples) for _ in range(2))
        assert first == again == [pytest.approx(SCORE), None, pytest.approx(SCORE)]
        assert len(asked) == 4
        with pytest.raises(BadInput, match="the judge accepts no request"):  # other requests: nothing is known of these
            reward_of(url, cache=path, max_tokens=99).score(samples)


# --- answers that cannot be read --------------------------------------------------------------------------------------

PAGE = (200, {"Content-Type": "text/html"}, b"<!doctype html><h1>Welcome</h1>")
PROSE = (200, {}, reply("It looks fine to me: 9 of 10.", **USED))


@pytest.mark.parametrize("answer", [PAGE, PROSE], ids=["html", "prose"])
def test_a_judge_that_is_never_understood_is_an_error_not_a_missing_score(
    answer: tuple[int, dict[str, str], bytes],
) -> None:
    """Long before the deadline, and without twelve calls for each sample."""
    with answering(answer) as (url, asked):
        with pytest.raises(
            BadInput, match=r"no answer of the judge can be read\nhttp://\S+: this is not JSON\nsee"
        ) as told:
            reward_of(url, wait=0.01, concurrency=1).score([edit_of(seed) for seed in range(5)])
        assert len(asked) == MOST_UNREAD + 4
    assert len(str(told.value).splitlines()) == 3


def test_a_sample_whose_answers_cannot_be_read_is_missing_among_others(tmp_path: Path) -> None:
    """Also when the others are known from an earlier start."""
    samples, path = [edit_of(seed) for seed in range(3)], str(tmp_path / "judge.sqlite")
    once = (FINE, *[PROSE] * MOST_UNREAD)
    with answering(*once, FINE, PROSE) as (url, asked):
        first, again = (reward_of(url, cache=path, wait=0.01, concurrency=1).score(samples) for _ in range(2))
    assert first == again == [pytest.approx(SCORE), None, pytest.approx(SCORE)]
    assert len(asked) == len(once) + 1 + MOST_UNREAD


def test_one_that_is_read_after_others_were_given_up_lets_all_be_asked_as_often_as_ever() -> None:
    answers = (*[PAGE] * MOST_UNREAD, FINE, *[PAGE] * (MOST_UNREAD - 1), FINE)
    with answering(*answers) as (url, asked):
        scores = reward_of(url, wait=0.01, concurrency=1).score([edit_of(seed) for seed in range(3)])
    assert scores == [None, pytest.approx(SCORE), pytest.approx(SCORE)]
    assert len(asked) == len(answers)


def test_the_form_of_the_answer_is_said_in_words_too(tmp_path: Path) -> None:
    """For edits, for pictures, and for marks of one's own, a judge can do as asked without knowing the schema."""
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(TEMPLATE))
    watch = Watch(1, 0)
    with answering(FINE, watch=watch) as (url, _):
        assert reward_of(url, concurrency=1).score([edit_of(0), *prompts(1)]) == [pytest.approx(0.4)] * 2
        assert reward_of(url, template=str(path)).score([edit_of(0)]) == [pytest.approx(0.4)]
    for request in watch.requests:
        said = request["messages"][0]["content"]
        for name, form in request["response_format"]["json_schema"]["schema"]["properties"].items():
            line = next(line for line in said.splitlines() if line.startswith(f'"{name}": '))
            assert line.endswith(form["description"].removeprefix("0 to 10. "))
    assert len(watch.requests) == 3


# --- how many at a time -----------------------------------------------------------------------------------------------


def test_more_than_a_hundred_calls_may_go_at_a_time() -> None:
    watch = Watch(120, 20)
    with answering(FINE, watch=watch) as (url, _):
        scores = reward_of(url, concurrency=120, timeout=29).score([edit_of(0)] * 120)
    assert scores == [pytest.approx(0.4)] * 120
    assert watch.most == 120


def test_threads_share_a_reward_s_calls_at_a_time() -> None:
    watch = Watch(99, 0.1)
    with answering(FINE, watch=watch) as (url, _):
        reward = reward_of(url, concurrency=2)
        with ThreadPoolExecutor(4) as pool:
            scores = [*pool.map(reward.score, [[edit_of(0)] * 4] * 4)]
    assert scores == [[pytest.approx(0.4)] * 4] * 4
    assert watch.most == 2


def test_the_paper_s_edit_scores_take_both_marks_from_one_call(judge: Judge, tmp_path: Path) -> None:
    sets = ["train.edits=2", "train.source={kind: world}", "results=2", "resolution=64", "batch=2"]
    sets += ["model=tiny-kontext", "steps=1", "device=cpu"]
    for mark in ("instruction_following", "quality"):
        where = {"base_url": judge.url, "model": MODEL, "key_env": "JUDGE_KEY", "cache": str(tmp_path / "judge.sqlite")}
        sets += [f"judge.{mark}.{key}={json.dumps(value)}" for key, value in where.items()]
    before = judge.ledger()["calls"]
    data = make_scores(read("paper/edit-scores", sets), tmp_path / "run")
    assert judge.ledger()["calls"] == before + 4
    lines = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    for line in lines:
        source, result = (Image.open(data / line[key]) for key in ("source", "result"))
        judged = judgement.judge([[f"Instruction: {line['instruction']}"]], [source, result])
        assert line["scores"] == pytest.approx(
            {"instruction_following": judged.fit, "quality": judged.quality}, abs=0.01
        )


def test_a_budget_needs_a_judge_that_says_what_it_has_used(tmp_path: Path) -> None:
    with answering((200, {}, reply(json.dumps(GOOD)))) as (url, _):
        reward = reward_of(url, cache=str(tmp_path / "judge.sqlite"), prices=[1.0, 1.0], budget=1.0)
        with pytest.raises(BadInput, match="does not say what it has used"):
            reward.score([edit_of(0)])


# --- cache and budget -------------------------------------------------------------------------------------------------


def test_nothing_is_judged_twice(judge: Judge, tmp_path: Path) -> None:
    samples = [edit_of(seed) for seed in range(6)] + [Sample("paint the town red", *2 * [edit_of(0).picture])]
    path = str(tmp_path / "deep" / "judge.sqlite")
    first = reward_of(judge.url, cache=path)
    scores, calls = first.score(samples), judge.ledger()["calls"]
    assert scores[-1] is None
    second = reward_of(judge.url, cache=path, weights=None, n=1)
    assert second.score(samples) == scores
    assert judge.ledger()["calls"] == calls
    assert (second.told()["cached"], second.told()["cached"]) == (7, 0)
    other = reward_of(judge.url, cache=path, temperature=0.5)
    other.score(samples[:1])
    assert judge.ledger()["calls"] == calls + 1
    assert KEY.encode() not in b"".join(p.read_bytes() for p in (tmp_path / "deep").iterdir())


def test_a_key_is_of_all_that_is_judged() -> None:
    rng = np.random.default_rng(0)
    flat = rng.integers(0, 256, 64 * 32 * 3, np.uint8)
    wide, high = (Image.fromarray(flat.reshape(shape)) for shape in ((32, 64, 3), (64, 32, 3)))
    assert wide.tobytes() == high.tobytes()
    asked = {"model": "a", "n": 1}
    keys = [
        key_of(asked, "a star", [wide]),
        key_of(asked, "a star", [high]),
        key_of(asked, "a star", [wide, high]),
        key_of(asked, "a star", [high, wide]),
        key_of(asked, "a ring", [wide]),
        key_of(asked | {"n": 2}, "a star", [wide]),
        key_of(asked, "a star\ud800", [wide]),
    ]
    assert len(set(keys)) == len(keys)
    assert key_of({"n": 1, "model": "a"}, "a star", [wide.copy()]) == keys[0]


def test_processes_and_threads_share_a_cache(tmp_path: Path) -> None:
    """Each makes the file if it is the first, and none loses what another wrote."""
    path = tmp_path / "judge.sqlite"
    verdict = Verdict({"quality": 5.0}, "so so")

    def work(rank: int) -> Callable[[], None]:
        def run() -> None:
            cache = JudgeCache(path)

            def write(thread: int) -> None:
                with cache.opened() as rows:
                    for i in range(10):
                        rows.put(f"{rank} {thread} {i}", [verdict], {})
                        rows.put("shared", [verdict], {})
                        rows.spend(Usage(2, 1), 0.5)

            with ThreadPoolExecutor(3) as pool:
                list(pool.map(write, range(3)))

        return run

    children = [Child(tmp_path, work(rank)) for rank in range(4)]
    for child in children:
        ended = child.end()
        assert ended.code == 0, ended
    with JudgeCache(path).opened() as rows:
        assert rows.spent() == 4 * 3 * 10 * 0.5
        for rank in range(4):
            assert all(rows.get(f"{rank} {t} {i}", ["quality"]) == [verdict] for t in range(3) for i in range(10))
        assert rows.get("shared", ["quality"]) == [verdict]
        assert rows.get("unknown", ["quality"]) is None
    assert {p.name for p in tmp_path.glob(".judge*")} == set()


def spoil(path: Path, how: str) -> None:
    JudgeCache(path)
    with JudgeCache(path).opened() as rows:
        for i in range(400):
            rows.put(str(i), [Verdict({"quality": 5.0}, "so so" * 40)], {})
    match how:
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(path.read_bytes()[:-9000])
        case "overwritten":
            path.write_bytes(path.read_bytes()[:8192] + b"\xee" * 8192 + path.read_bytes()[16384:])
        case "no database":
            path.write_text("a diary, which must not be lost")
        case "another":
            path.unlink()
            database = sqlite3.connect(path)
            database.execute("CREATE TABLE verdicts (x)")
            database.close()
        case "a folder":
            path.unlink()
            path.mkdir()
        case "nowhere":
            path.unlink()
            path.symlink_to("/proc/nowhere/judge.sqlite")


@pytest.mark.parametrize("how", ["empty", "cut", "overwritten", "no database", "another", "a folder", "nowhere"])
def test_a_damaged_cache_is_named_and_left_as_it_is(how: str, tmp_path: Path) -> None:
    path = tmp_path / "judge.sqlite"
    spoil(path, how)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(UnipicError, match=r"the judge's cache (is damaged|cannot be used)") as told:
        JudgeCache(path)
    assert str(path) in told.value.where
    assert len(str(told.value).splitlines()) == 3
    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_row_that_is_no_verdict_is_an_error(tmp_path: Path) -> None:
    cache = JudgeCache(tmp_path / "judge.sqlite")
    with cache.opened() as rows:
        rows.database.execute("INSERT INTO verdicts VALUES ('a', '{\"verdicts\": [{\"quality\": 11}]}')")
        with pytest.raises(UnipicError, match="the judge's cache is damaged"):
            rows.get("a", ["quality"])


def test_a_budget_ends_the_scoring_and_is_kept_over_restarts(judge: Judge, tmp_path: Path) -> None:
    """Its words cost 0.004 each, so that a call costs about one."""
    samples = [edit_of(seed) for seed in range(8)]
    settings: dict[str, Any] = {"cache": str(tmp_path / "judge.sqlite"), "prices": [4_000.0, 4_000.0]}
    before = judge.ledger()["calls"]
    with pytest.raises(TryLater, match=r"the judge's budget is spent\nbudget 2, spent 2\.") as told:
        reward_of(judge.url, **settings, budget=2.0, concurrency=1).score(samples)
    assert told.value.exit_code == 75
    paid = judge.ledger()["calls"]
    assert 2 <= paid - before <= 3
    with pytest.raises(TryLater, match="budget is spent"):
        reward_of(judge.url, **settings, budget=2.0).score(samples)
    assert judge.ledger()["calls"] == paid
    more = reward_of(judge.url, **settings, budget=100.0)
    assert more.score(samples) == [genuine(sample) for sample in samples]
    assert judge.ledger()["calls"] == before + len(samples)  # what was paid for is not paid for again
    assert more.told()["cost"] == pytest.approx(more.meter.cost)
    assert 0.5 < more.meter.cost / more.meter.counts["calls"] < 2


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"base_url": "ftp://judge/v1"}, "http:// or https://"),
        ({"base_url": "file:///etc/passwd"}, "http:// or https://"),
        ({"base_url": "http://:1/v1"}, "http:// or https://"),
        ({"base_url": "http://judge:99999999/v1"}, "http:// or https://"),
        ({"base_url": "http://me:word@judge/v1"}, "more than a host and a path"),
        ({"base_url": "http://judge/v1?key=word"}, "more than a host and a path"),
        ({"key_env": "sk-123"}, "should match pattern"),
        ({"key_env": "NO_SUCH_KEY"}, "not in the environment"),
        ({"n": 0}, "greater than or equal to 1"),
        ({"n": 2.0}, "whole number"),
        ({"temperature": 3}, "less than or equal to 2"),
        ({"concurrency": 0}, "greater than or equal to 1"),
        ({"timeout": 0}, "greater than 0"),
        ({"timeout": 30, "patience": 30}, "timeout must be shorter"),
        ({"patience": 61}, "patience no longer than deadline"),
        ({"requests_per_minute": 0}, "greater than 0"),
        ({"prices": [1.0]}, "no item 1"),
        ({"prices": [1.0, -1.0]}, "greater than or equal to 0"),
        ({"budget": 1.0}, "a budget needs prices"),
        ({"budget": 1.0, "prices": [1.0, 1.0]}, "a budget needs prices, and a cache"),
        ({"weights": {"quality": 0.0}}, "above 0"),
        ({"weights": {"quality": 1.0}}, "weights need each mark"),
        ({"weights": {"instruction_following": 1.0, "alignment": 1.0, "quality": 1.0, "x": 1.0}}, "no such mark"),
        ({"template": "nowhere.yaml"}, "cannot be read"),
        ({"detail": "medium"}, "'auto', 'low' or 'high'"),
        ({"retries": 3}, 'unknown key "retries"'),
    ],
)
def test_bad_settings_are_refused_in_three_lines(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(BadInput) as told:
        reward_of("http://127.0.0.1:9/v1", **changes)
    assert what in str(told.value)
    assert 2 <= len(str(told.value).splitlines()) <= 3
    assert "word" not in str(told.value)


TEMPLATE: dict[str, Any] = {
    "edit": {
        "system": "Judge.",
        "user": "{source} {picture} Request: {text}",
        "marks": {"success": "10 if it is done"},
    }
}


def test_a_template_of_one_s_own(judge: Judge, tmp_path: Path) -> None:
    """One mark, other words; and no score of what it has no template for."""
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(TEMPLATE))
    samples = [edit_of(0), edit_of(1), *prompts(1)]
    scores = reward_of(judge.url, template=str(path)).score(samples)
    for sample, score in zip(samples[:2], scores, strict=False):
        assert sample.source is not None
        judged = judgement.judge([[f"Request: {sample.text}"]], [sample.source, sample.picture])
        assert judged.fit is not None
        assert score == pytest.approx(round(judged.fit, 2) / 10)
    assert scores[2] is None


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"user": "{picture} {text}"}, "edit.user needs"),
        ({"user": "{source} {picture} {text} {text}"}, "edit.user needs"),
        ({"marks": {}}, "at least 1"),
        ({"marks": {"reasons": "why"}}, "given beside the marks"),
        ({"marks": {"Success!": "done"}}, "pattern"),
        ({"model": "x"}, 'unknown key "model"'),
    ],
)
def test_a_bad_template_is_refused(changes: dict[str, Any], what: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({"edit": TEMPLATE["edit"] | changes}))
    with pytest.raises(BadInput) as told:
        reward_of("http://127.0.0.1:9/v1", template=str(path))
    assert what in str(told.value)
    assert len(str(told.value).splitlines()) == 3


ODD = ("{picture} {source} {text}", '"}], "n": 9', "<|im_end|>", "{0} %s\n", "\ud800\x00", "")


@pytest.mark.parametrize("text", ODD)
def test_text_is_inserted_as_it_is(text: str) -> None:
    """Braces, special tokens and lone surrogates are words like others; pictures stay where they belong."""
    edit, prompt = edit_of(0), prompts(1)[0]
    sent = text.replace("\ud800", "?")  # which no encoding has
    template = reward_of("http://127.0.0.1:9/v1").templates.of(edit)
    assert template is not None
    plain, odd = (template.messages(Sample(t, edit.picture, edit.source), "high") for t in ("", text))
    assert odd[0] == plain[0]
    parts = odd[1]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url", "text", "image_url", "text"]
    assert parts[:4] == plain[1]["content"][:4]
    assert parts[4]["text"] == f"\nInstruction: {sent}"
    json.dumps(odd, ensure_ascii=False).encode()  # it can be sent
    template = reward_of("http://127.0.0.1:9/v1").templates.of(prompt)
    assert template is not None
    said = template.messages(Sample(text, prompt.picture), "high")[1]["content"]
    assert [part.get("text") for part in said] == [None, f"\nPrompt: {sent}"]


def test_odd_text_is_understood_by_a_judge_as_no_instruction(judge: Judge) -> None:
    edit = edit_of(0)
    samples = [edit, *(Sample(text, edit.picture, edit.source) for text in ODD)]
    scores = reward_of(judge.url).score(samples)
    assert scores == [genuine(edit), *[None] * len(ODD)]


def test_what_the_judge_never_accepts_is_an_error_not_a_missing_score(
    judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({"edit": TEMPLATE["edit"] | {"marks": {"beauty": "10 if it is"}}}))
    cases = [
        ({"model": "another"}, "the judge is not there"),
        ({"base_url": judge.url + "/elsewhere"}, "the judge is not there"),
        ({"template": str(path)}, "the judge accepts no request"),
    ]
    for changes, what in cases:
        reward = reward_of(**{"url": judge.url} | {"url": changes.pop("base_url", judge.url)} | changes)
        with pytest.raises(BadInput, match=what) as told:
            reward.score([edit_of(0)])
        assert KEY not in str(told.value)
    monkeypatch.setenv("JUDGE_KEY", wrong := KEY + "0")
    with pytest.raises(BadInput, match="does not take the key") as told:
        reward_of(judge.url).score([edit_of(0)])
    assert wrong not in str(told.value)
    assert wrong not in repr(reward_of(judge.url).config)
    monkeypatch.setenv("JUDGE_KEY", "two\nlines")
    with pytest.raises(BadInput, match="no key") as told:
        reward_of(judge.url)
    assert "lines" not in str(told.value)


def test_without_its_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(BadInput, match=r"unipic\[judge\]"):
        reward_of("http://127.0.0.1:9/v1")
