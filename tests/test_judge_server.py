"""The judge over HTTP: a real server, real clients; verdicts as of `verify`, faults as documented, no others."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from tests.servers import serving
from unipic.errors import BadInput, UnipicError
from unipic.serve.faults import HUGE, KINDS, Faults
from unipic.serve.judge import MODEL, judge_app, serve_judge
from unipic.world import edits, language, verify
from unipic.world.render import render
from unipic.world.scene import Object, Scene, sample

KEY = "a key"
CHAT = "/v1/chat/completions"
EDIT = edits.sample(4, "train", "color_alter")
SOURCE, TARGET = render(EDIT.source), render(EDIT.target)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(judge_app()) as address:
        yield address


def data_url(picture: Image.Image | bytes, kind: str = "png") -> str:
    buffer = io.BytesIO()
    if isinstance(picture, Image.Image):
        picture.save(buffer, "PNG")
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue() or bytes(picture)).decode()


def request(text: str, *pictures: Image.Image | str, **more: Any) -> dict[str, Any]:
    urls = [p if isinstance(p, str) else data_url(p) for p in pictures]
    shown = [{"type": "image_url", "image_url": {"url": u, "detail": "high"}} for u in urls]
    content = [{"type": "text", "text": text}, *shown]
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **more}


def client(url: str, key: str = "none", **settings: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=url + "/v1", api_key=key, max_retries=0, **settings)


def ask(url: str, text: str, *pictures: Image.Image, **more: Any) -> dict[str, Any]:
    said = client(url).chat.completions.create(**request(text, *pictures, **more))
    answer: dict[str, Any] = json.loads(said.choices[0].message.content or "")
    return answer


def schema(**properties: Any) -> dict[str, Any]:
    return {
        "type": "json_schema",
        "json_schema": {"name": "verdict", "schema": {"type": "object", "properties": properties}},
    }


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_edits_are_judged_as_verify_does(url: str) -> None:
    """Those that are left undone, right, right of another instruction, half done, and under noise."""
    forms = ("Editing instruction: {}", 'Judge this.\ninstruction: "{}"\nBe strict.', "How well was “{}” done?", "{}")
    scores = set()
    for seed in range(24):
        edit = edits.sample(seed, ("train", "test")[seed % 2], edits.TYPES[seed % 12])
        source, target, rng = render(edit.source), render(edit.target), np.random.default_rng(seed)
        other = edits.another(edit, "test", rng)
        misled = [] if other is None else [render(other.target)]
        noisy = np.asarray(target) + rng.normal(0, 25, (*target.size[::-1], 3))
        spoilt = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        for result in (source, target, *misled, Image.blend(source, target, 0.5), spoilt):
            answer = ask(url, forms[seed % 4].format(edit.instruction), source, result)
            verdict = verify.edit(source, result, edit)
            assert list(answer) == ["instruction_following", "quality", "reasons"]
            assert answer["instruction_following"] == pytest.approx(verdict.sc, abs=0.01), edit
            assert answer["quality"] == pytest.approx(verdict.pq, abs=0.01)
            assert sorted(answer["reasons"].split("; ")) == sorted(verdict.reasons or ("as asked",))
            scores.add(answer["instruction_following"])
    assert {0, 10} <= scores
    assert len(scores) > 4


def test_prompts_are_judged_as_verify_does(url: str) -> None:
    rng, right = np.random.default_rng(0), Counter[bool]()
    for seed in range(24):
        scene = sample(seed, "train")
        prompt = language.prompt(scene, language.TAGS[seed % 6], rng)
        if prompt is None:
            continue
        for picture in (render(scene), render(sample(seed + 500, "train"))):
            answer = ask(url, f"Text Prompt: {prompt.text}", picture)
            verdict = verify.prompt(picture, prompt.metadata())
            wanted = 10 * verdict.soft if verdict.correct else min(9, 10 * verdict.soft)
            assert list(answer) == ["alignment", "quality", "reasons"]
            assert answer["alignment"] == pytest.approx(wanted, abs=0.01)
            assert answer["quality"] == pytest.approx(verify.quality(picture)[0], abs=0.01)
            right[verdict.correct] += 1
    assert min(right[True], right[False]) > 8


def test_of_a_description_the_share_that_holds(url: str) -> None:
    for seed in range(8):
        scene = sample(seed, "train", count=3)
        for said in (language.dense(scene, np.random.default_rng(seed)).text, language.caption(scene)):
            assert ask(url, f"Prompt: {said}", render(scene))["alignment"] == 10
            other = ask(url, f"Prompt: {said}", render(sample(seed + 900, "train")))
            assert other["alignment"] < 10
            assert "statements hold" in other["reasons"]


def test_quality_of_a_spoilt_picture() -> None:
    clean = verify.quality(TARGET)
    assert clean[0] > 9.5
    assert clean[1] == ()
    half = TARGET.copy()
    left, top, right, bottom = EDIT.target.objects[0].box
    half.paste(half.getpixel((0, 0)), (left, top, (left + right) // 2, bottom))
    pq, reasons = verify.quality(half)
    assert pq < 9
    assert reasons


def test_what_is_not_understood_has_no_score(url: str) -> None:
    answer = ask(url, "Instruction: paint the town red", SOURCE, TARGET)
    assert answer["instruction_following"] is None
    assert "the instruction was not understood" in answer["reasons"]
    assert ask(url, "a still life in oil", SOURCE)["alignment"] is None
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    assert ask(url, f"Instruction: {EDIT.instruction}", noise, TARGET)["instruction_following"] is None
    ground = SOURCE.getpixel((0, 0))
    crowd = Image.new("RGB", (512, 512), ground)
    for i in range(9):
        crowd.paste(SOURCE, (130 * (i % 3), 130 * (i // 3)))
    begun = time.monotonic()
    answer = ask(url, "Add a large blue circle", crowd, crowd)
    assert "the source is no scene of the world" in answer["reasons"]
    assert time.monotonic() - begun < 10
    # an example is never taken for the case
    said = f'Instruction: paint the town red\nFor example "{EDIT.instruction}"'
    assert ask(url, said, SOURCE, TARGET)["instruction_following"] is None


FORMS = (
    "Instructions: {}",
    "User request: {}",
    "Edit: {}",
    "The editing instruction is : {}.\n\nBelow are the images before and after editing:",
    "Instruction:\n{}\n\nNow judge.",
    "**Instruction:** {}",
    "**Instruction**: {}",
    "Was this done?\n**{}**",
    "Text: `{}`",
    "Judge the edit. <instruction>\n{}\n</instruction> Be strict.",
    '{{"instruction": "{}", "strict": true}}',
    "Prompt: a list of what is wrong\nThe user said “{}”.",
)


@pytest.mark.parametrize("form", FORMS)
def test_an_instruction_is_found_in_many_forms(url: str, form: str) -> None:
    told = EDIT.instruction
    for said in (told, told.upper(), f"Please {told[0].lower()}{told[1:]}"):
        assert ask(url, form.format(said), SOURCE, TARGET)["instruction_following"] == 10
        assert ask(url, form.format(said), SOURCE, SOURCE)["instruction_following"] < 4


def test_words_of_the_system_count_where_the_users_do_not_tell(url: str) -> None:
    shown = request("", SOURCE, TARGET)
    system = {"role": "system", "content": f"You judge edits. Instruction: {EDIT.instruction}"}
    for user, right in (("Judge this.", True), ("Instruction: Add a black star", False)):
        shown["messages"] = [system, request(user, SOURCE, TARGET)["messages"][0]]
        said = httpx.post(url + CHAT, json=shown).json()
        assert (json.loads(said["choices"][0]["message"]["content"])["instruction_following"] == 10) == right


def test_pictures_in_between_and_other_messages_do_not_count(url: str) -> None:
    wanted = request(EDIT.instruction, SOURCE, render(sample(9, "train")), TARGET)
    wanted["messages"].insert(0, {"role": "system", "content": "Prompt: a photo of a star"})
    wanted["messages"].append({"role": "assistant", "content": None})
    wanted["messages"].append({"role": "user", "content": "Answer in JSON."})
    said = httpx.post(url + CHAT, json=wanted | {"temperature": 0, "seed": 1, "made_up": [1]}).json()
    verdict = verify.edit(SOURCE, TARGET, EDIT)
    assert json.loads(said["choices"][0]["message"]["content"])["instruction_following"] == round(verdict.sc, 2)


# --- forms ------------------------------------------------------------------------------------------------------------


def test_a_schema_is_answered_with_its_properties(url: str) -> None:
    number, whole, optional = (
        {"type": "number"},
        {"type": "integer"},
        {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    )
    words, many = {"type": "string"}, {"type": "array", "items": {"type": "string"}}
    half = render(edits.sample(0, "train", "compose").source)
    edit = edits.sample(0, "train", "compose")
    verdict = verify.edit(half, half, edit)
    form = schema(SC=number, success=whole, pq=optional, overall=number, reasoning=words, reasons=many)
    answer = ask(url, edit.instruction, half, half, response_format=form)
    assert list(answer) == ["SC", "success", "pq", "overall", "reasoning", "reasons"]
    assert answer["SC"] == round(verdict.sc, 2)
    assert (answer["success"], answer["pq"]) == (round(verdict.sc), round(verdict.pq))
    assert isinstance(answer["success"], int)
    assert answer["overall"] == pytest.approx(math.sqrt(verdict.sc * verdict.pq), abs=0.01)
    assert answer["reasons"] == list(verdict.reasons)
    assert answer["reasoning"] == "; ".join(verdict.reasons)
    assert ask(url, edit.instruction, half, half, response_format=schema(score=number)) == {"score": answer["overall"]}
    words_alone = schema(naturalness=number, reasoning=words)
    assert ask(url, "", SOURCE, response_format=words_alone) == {"naturalness": 10.0, "reasoning": "as asked"}


def test_viescore_is_answered_in_its_form(url: str) -> None:
    form = 'Answer with {"score" : [...], "reasoning" : "..."}.\nEditing instruction: ' + EDIT.instruction
    verdict = verify.edit(SOURCE, SOURCE, EDIT)
    answer = ask(url, form, SOURCE, SOURCE)
    assert answer["score"] == [round(verdict.sc, 2)] * 2
    assert answer["reasoning"] == "; ".join(verdict.reasons)
    whole = ask(url, "Rate from 0 to 10. " + form, SOURCE, TARGET)["score"]
    assert whole == [10, 10]
    assert all(isinstance(score, int) for score in whole)


def test_viescore_of_one_picture_is_of_its_prompt_or_of_its_quality(url: str) -> None:
    form = 'Rate from scale 0 to 10. Answer with {{"score" : [...], "reasoning" : "..."}}. output score = {}\n'
    right, wrong, unread = "a photo of a star", "a photo of two stars", "a photo of a sheep"
    star = render(Scene(64, 64, "gray", "light", (Object("star", "red", "medium", "filled", 30, 30),)))
    blended = Image.blend(star, TARGET.resize(star.size), 0.5)
    for prompt, wanted in ((right, 10), (wrong, 5), (unread, None)):
        answer = ask(url, form.format("[score]") + f"Text Prompt: {prompt}", star)
        assert answer["score"] == [wanted]
        assert ("not understood" in answer["reasoning"]) == (wanted is None)
    for picture in (star, blended):
        answer = ask(url, form.format("[naturalness, artifacts]"), picture)
        assert answer["score"] == [round(verify.quality(picture)[0])] * 2
        assert "not understood" not in answer["reasoning"]


RATING = """Rate the edit on a 5-point scale from three perspectives. You are given the editing instructions.
Example Response Format:
Brief reasoning: A short explanation of the score, no more than 20 words.
Prompt Compliance: A number from 1 to 5.
Visual Naturalness: A number from 1 to 5.
Physical & Detail Integrity: A number from 1 to 5.
editing instruction is : {}."""


def test_imgedit_is_answered_in_its_lines(url: str) -> None:
    for seed, type in enumerate(edits.TYPES):
        edit = edits.sample(seed, "test", type)
        source, target = render(edit.source), render(edit.target)
        for result in (source, target, Image.blend(source, target, 0.5)):
            said = client(url).chat.completions.create(**request(RATING.format(edit.instruction), source, result))
            lines = dict(line.split(": ", 1) for line in (said.choices[0].message.content or "").split("\n"))
            names = ["Brief reasoning", "Prompt Compliance", "Visual Naturalness", "Physical & Detail Integrity"]
            assert list(lines) == names
            assert len(lines.pop("Brief reasoning").split()) <= 20
            compliance, *others = map(int, lines.values())
            verdict = verify.edit(source, result, edit)
            assert compliance == round(1 + 0.4 * verdict.sc)
            assert others == [min(compliance, round(1 + 0.4 * verdict.pq))] * 2
    unread = client(url).chat.completions.create(**request(RATING.format("sing"), SOURCE, TARGET))
    assert "Prompt Compliance: unknown" in (unread.choices[0].message.content or "")
    as_json = ask(url, RATING.format(EDIT.instruction), SOURCE, TARGET, response_format=schema(sc={"type": "number"}))
    assert as_json == {"sc": 10}


def test_several_choices_are_equal(url: str) -> None:
    said = client(url).chat.completions.create(**request(EDIT.instruction, SOURCE, TARGET, n=8))
    assert [c.index for c in said.choices] == list(range(8))
    assert len({c.message.content for c in said.choices}) == 1
    assert said.usage is not None
    words = len(EDIT.instruction.split()), 8 * len((said.choices[0].message.content or "").split())
    assert (said.usage.prompt_tokens, said.usage.completion_tokens) == words
    assert said.usage.total_tokens == sum(words)


# --- who may ask what -------------------------------------------------------------------------------------------------


def test_a_key_is_needed_everywhere_but_for_health() -> None:
    with serving(judge_app(api_key="κλειδί and a key")) as address:
        assert httpx.get(address + "/health").json() == {"status": "ok"}
        right = {"Authorization": "Bearer κλειδί and a key".encode()}
        wrong: list[Any] = [{}, {"Authorization": "Bearer other"}, {"Authorization": "κλειδί and a key".encode()}]
        wrong += [{"Authorization": b"Bearer \xff\xfe"}, {"Authorization": ""}]
        asked = request(EDIT.instruction, SOURCE, TARGET)
        for method, path in (("GET", "/v1/models"), ("GET", "/ledger"), ("POST", CHAT)):
            for headers in wrong:
                said = httpx.request(method, address + path, json=asked if method == "POST" else None, headers=headers)
                assert said.status_code == 401, (path, headers)
                assert said.json()["error"]["code"] == "invalid_api_key"
            assert httpx.request(method, address + path, json=asked, headers=right).status_code == 200
        with pytest.raises(openai.AuthenticationError):
            client(address, "other").models.list()
        assert httpx.get(address + "/ledger", headers=right).json()["calls"] == 1


def test_there_is_one_model(url: str) -> None:
    assert [m.id for m in client(url).models.list()] == [MODEL]
    with pytest.raises(openai.NotFoundError, match="no model gpt"):
        client(url).chat.completions.create(**request(EDIT.instruction, SOURCE) | {"model": "gpt"})
    assert httpx.get(url + "/elsewhere").json()["error"]["message"] == "Not Found"


def test_the_server_fetches_nothing(url: str) -> None:
    """A listener that a picture's address points to hears nothing."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.3)
        for scheme in ("http", "https"):
            there = f"{scheme}://127.0.0.1:{trap.getsockname()[1]}/picture.png"
            with pytest.raises(openai.BadRequestError, match="data:image"):
                ask(url, EDIT.instruction, there, there)  # type: ignore[arg-type]
        with pytest.raises(TimeoutError):
            trap.accept()


# --- malformed requests -----------------------------------------------------------------------------------------------


def png_of(width: int, height: int) -> bytes:
    """A file that claims this size and holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def saved(picture: Image.Image, kind: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()


GOOD = request(EDIT.instruction, SOURCE, TARGET)
BAD_BODIES = {
    "nothing": b"",
    "no JSON": b"{",
    "no object": b"[]",
    "no UTF-8": b'{"model": "\xff"}',
    "NaN": json.dumps(GOOD | {"n": float("nan")}).encode(),
    "a lone surrogate": json.dumps(request("\ud800", SOURCE)).encode(),
    "deep": b"[" * 100_000,
    "deep within": json.dumps(GOOD).encode()[:-1] + b', "more": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "a huge number": json.dumps(GOOD).encode()[:-1] + b', "n": ' + b"1" * 10_000 + b"}",
    "many wrong parts": json.dumps({"model": MODEL, "messages": [[]] * 1_000_000}).encode(),
}
BAD_FIELDS: dict[str, dict[str, Any]] = {
    "no messages": {"messages": []},
    "messages null": {"messages": None},
    "a message that is none": {"messages": ["hello"]},
    "no content": {"messages": [{"role": "user"}]},
    "content null": {"messages": [{"role": "user", "content": None}]},
    "content a number": {"messages": [{"role": "user", "content": 3}]},
    "a part of no type": {"messages": [{"role": "user", "content": [{"text": "a"}]}]},
    "a part of another type": {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
    "an address that is none": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
    "n 0": {"n": 0},
    "n 9": {"n": 9},
    "n a text": {"n": "2"},
    "n true": {"n": True},
    "a stream": {"stream": True},
    "a model that is none": {"model": None},
    "a format that is none": {"response_format": "json"},
    "another format": {"response_format": {"type": "grammar"}},
    "a schema that is none": {"response_format": {"type": "json_schema"}},
    "a schema of nothing": {"response_format": schema()},
    "a schema of lists": {"response_format": {"type": "json_schema", "json_schema": {"schema": {"properties": [1]}}}},
    "an unknown property": {"response_format": schema(beauty={"type": "number"})},
    "257 parts": request("a", *[data_url(b"x")] * 257),
    "17 pictures": request("a", *[SOURCE] * 17),
}
BAD_PICTURES = {
    "no base64": "data:image/png;base64,%%%",
    "no ASCII": "data:image/png;base64,ä",
    "no bytes": "data:image/png;base64,",
    "no comma": "data:image/png;base64",
    "a GIF": data_url(saved(SOURCE, "GIF"), "gif"),
    "a GIF that says PNG": data_url(saved(SOURCE, "GIF")),
    "EPS": data_url(saved(SOURCE, "EPS")),
    "one pixel": data_url(Image.new("RGB", (1, 1))),
    "a bomb": data_url(png_of(50_000, 50_000)),
    "a picture of 9 megapixels": data_url(Image.new("RGB", (3000, 3000))),
    "cut": data_url(saved(SOURCE, "PNG")[:-40]),
    "an animation": data_url(saved(SOURCE, "PNG", save_all=True, append_images=[TARGET])),
    "a file": "file:///etc/passwd",
    "an address": "http://localhost/picture.png",
    "nothing": "",
}


@pytest.mark.parametrize(
    "body",
    [
        *(pytest.param(body, id=name) for name, body in BAD_BODIES.items()),
        *(pytest.param(json.dumps(GOOD | fields).encode(), id=name) for name, fields in BAD_FIELDS.items()),
        *(pytest.param(json.dumps(request("a", u)).encode(), id=name) for name, u in BAD_PICTURES.items()),
    ],
)
def test_malformed_requests_are_told_why(url: str, body: bytes) -> None:
    said = httpx.post(url + CHAT, content=body, timeout=20)
    assert said.status_code == 400, said.text
    error = said.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert 10 < len(error["message"]) < 600


def test_an_unknown_property_is_named(url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="beauty"):
        ask(url, "a", SOURCE, response_format=schema(beauty={"type": "number"}))


def test_large_bodies_are_refused_and_long_texts_read(url: str) -> None:
    said = httpx.post(url + CHAT, content=b" " * 32_000_001, timeout=20)
    assert said.status_code == 413
    assert said.json()["error"]["message"] == "the body is larger than 32 MB"
    for filler in (
        "prompt" + " " * 900_000,
        "<a>" * 300_000,
        "**" * 400_000,
        "a\n" * 400_000,
        "a " * 500_000,
        "'“\"\n" * 250_000,
        "prompt :\n" * 110_000,
        '"score" "reasoning' * 55_000,
    ):
        begun = time.monotonic()
        assert "alignment" in ask(url, filler, SOURCE) or "score" in ask(url, filler, SOURCE)
        assert time.monotonic() - begun < 10
    long = "Judge well. " * 80_000 + "\nEditing instruction: " + EDIT.instruction
    assert ask(url, long, SOURCE, TARGET)["instruction_following"] == 10


# --- load and ledger --------------------------------------------------------------------------------------------------


def test_sixteen_at_once_and_the_ledger_counts(tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    drawn = [edits.sample(seed, "train") for seed in range(16)]
    pairs = [(e.instruction, render(e.source), render(e.target)) for e in drawn]
    with serving(judge_app(ledger=file)) as address:
        with ThreadPoolExecutor(16) as pool:
            first, second = (list(pool.map(lambda p: ask(address, *p), pairs)) for _ in range(2))
        assert first == second
        with pytest.raises(openai.BadRequestError):
            ask(address, "no picture")
        assert httpx.get(address + "/ledger").json() == {"calls": 32, "answers": 32, "faults": {}, "judgements": 16}
        lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted(line["call"] for line in lines) == list(range(1, 33))
    assert set(Counter(line["key"] for line in lines).values()) == {2}
    assert next(line["answer"] for line in lines if line["call"] == 1) in first
    with serving(judge_app(ledger=file)) as address:
        ask(address, *pairs[0])
    assert len(file.read_text().splitlines()) == 33


def test_a_client_that_went_has_no_answer_in_the_ledger() -> None:
    body = json.dumps(GOOD).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: judge\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with serving(judge_app()) as address:
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as short:
            short.sendall(head + body[:-10])  # cut: no request yet
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as short:
            short.sendall(head + body)
            short.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        deadline = time.monotonic() + 10
        while not (counts := httpx.get(address + "/ledger").json())["calls"] and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (counts["calls"], counts["answers"]) == (1, 0)


# --- faults -----------------------------------------------------------------------------------------------------------


def test_faults_are_a_function_of_seed_and_call() -> None:
    met = [Faults(0.3, seed=5).of(call) for call in range(4000)]
    assert met == [Faults(0.3, seed=5).of(call) for call in range(4000)]
    assert met != [Faults(0.3, seed=6).of(call) for call in range(4000)]
    assert 0.27 < sum(kind is not None for kind in met) / 4000 < 0.33
    assert set(met) == {*KINDS, None}
    assert len(KINDS) == 14
    assert not any(Faults(0.0).of(call) for call in range(100))
    assert all(Faults(1.0).of(call) for call in range(100))
    for wrong in ({"share": 1.1}, {"share": math.nan}, {"share": 0.5, "kinds": ("odd",)}, {"share": 0.5, "kinds": ()}):
        with pytest.raises(BadInput):
            Faults(**wrong)  # type: ignore[arg-type]


def observed(kind: str, *pictures: Image.Image, **more: Any) -> httpx.Response:
    """What a client that asks about an edit gets; the ledger has it under its kind."""
    with serving(judge_app(faults=Faults(1.0, kinds=(kind,)))) as address:
        said = httpx.post(address + CHAT, json=request(EDIT.instruction, SOURCE, SOURCE, **more), timeout=20)
        counts = httpx.get(address + "/ledger").json()
        assert counts == {"calls": 1, "answers": 0, "faults": {kind: 1}, "judgements": 0}
    return said


def content(said: httpx.Response) -> str:
    return str(said.json()["choices"][0]["message"]["content"])


GENUINE = verify.edit(SOURCE, SOURCE, EDIT)


def test_faults_in_what_is_said() -> None:
    assert content(observed("truncated")) == '{"instruction_following":'
    fraction = json.loads(content(observed("fraction")))
    assert fraction["instruction_following"] == f"{round(GENUINE.sc, 2):g}/10"
    assert fraction["quality"].endswith("/10")
    assert '"instruction_following": NaN' in content(observed("nan"))
    far = json.loads(content(observed("out_of_range")))
    assert (far["instruction_following"], far["quality"]) == (11, 11)
    assert far["reasons"] == "; ".join(GENUINE.reasons)
    assert list(json.loads(content(observed("fewer")))) == ["quality", "reasons"]
    assert [c["index"] for c in observed("fewer", n=3).json()["choices"]] == [0, 1]
    fenced = re.fullmatch(r"```json\n(.*)\n```", content(observed("reordered")))
    assert fenced
    assert list(json.loads(fenced[1])) == ["reasons", "quality", "instruction_following"]
    assert json.loads(fenced[1])["instruction_following"] == round(GENUINE.sc, 2)
    assert [c["index"] for c in observed("reordered", n=3).json()["choices"]] == [2, 1, 0]
    huge = content(observed("huge"))
    assert len(huge) > HUGE == 10_000_000
    assert json.loads(huge)["instruction_following"] == round(GENUINE.sc, 2)
    assert observed("empty").json()["choices"] == []


def test_faults_in_lists_of_scores() -> None:
    text = f'Give {{"score": [], "reasoning": ""}}.\nInstruction: {EDIT.instruction}'
    for kind, wanted in (("fewer", 1), ("out_of_range", 2)):
        with serving(judge_app(faults=Faults(1.0, kinds=(kind,)))) as address:
            scores = ask(address, text, SOURCE, TARGET)["score"]
            assert len(scores) == wanted
            assert scores[0] == (11 if kind == "out_of_range" else 10)


def test_faults_in_how_it_is_sent() -> None:
    page = observed("html")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.text.startswith("<!doctype html>")
    broken = observed("server_error")
    assert broken.status_code == 500
    assert "<h1>Internal Server Error</h1>" in broken.text
    busy = observed("rate_limited")
    assert busy.status_code == 429
    assert "retry-after" not in busy.headers
    assert busy.json()["error"]["code"] == "rate_limit_exceeded"


def received(address: str, seconds: float) -> bytes:
    """What a client has of the body when it has waited for so long."""
    pieces, begun = [], time.monotonic()
    try:
        with httpx.stream("POST", address + CHAT, json=GOOD, timeout=seconds) as said:
            for piece in said.iter_raw():
                pieces.append(piece)
                if time.monotonic() - begun > seconds:
                    break
    except httpx.TransportError:
        pass
    return b"".join(pieces)


@pytest.mark.parametrize("kind", ["slow", "stalled"])
def test_faults_in_time(kind: str) -> None:
    with serving(judge_app(faults=Faults(1.0, kinds=(kind,)))) as address:
        begun = time.monotonic()
        came = received(address, 2.5)
        assert 2 < time.monotonic() - begun < 5
        assert (1 <= len(came) <= 5) if kind == "slow" else not came
        with pytest.raises(openai.APITimeoutError):
            client(address, timeout=0.5).chat.completions.create(**GOOD)
        assert httpx.get(address + "/ledger").json()["faults"] == {kind: 2}


def test_the_openai_client_meets_the_faults_as_its_own_errors() -> None:
    for kind, error in (
        ("dropped", openai.APIConnectionError),
        ("server_error", openai.InternalServerError),
        ("rate_limited", openai.RateLimitError),
    ):
        with serving(judge_app(faults=Faults(1.0, kinds=(kind,)))) as address, pytest.raises(error):
            client(address).chat.completions.create(**GOOD)
    with serving(judge_app(faults=Faults(1.0, kinds=("dropped",)))) as address:
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.post(address + CHAT, json=GOOD)
        assert received(address, 5).startswith(b'{"id":"chatcmpl-2"')


# --- a process of its own ---------------------------------------------------------------------------------------------


def test_a_server_says_where_it_listens_and_ends_quietly() -> None:
    """Faults, and a client that still waits when it ends: nothing in its log but the address."""
    code = """
from unipic.serve.faults import Faults
from unipic.serve.judge import serve_judge
try:
    serve_judge("127.0.0.1", 0, faults=Faults(1.0, kinds=("dropped", "stalled", "slow")))
except KeyboardInterrupt:
    pass
"""
    server = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        line = server.stderr.readline()
        found = re.fullmatch(rf"the judge {MODEL} listens at (http://127\.0\.0\.1:\d+)/v1\n", line)
        assert found, line
        with ThreadPoolExecutor(12) as pool:
            waiting = [pool.submit(received, found[1], 60.0) for _ in range(12)]
            while httpx.get(found[1] + "/ledger").json()["calls"] < 12:
                time.sleep(0.1)
            met = httpx.get(found[1] + "/ledger").json()["faults"]
            assert set(met) == {"dropped", "stalled", "slow"}
            server.send_signal(signal.SIGINT)
            _, rest = server.communicate(timeout=20)
            lengths = sorted(len(w.result()) for w in waiting)
        assert lengths[0] < 20  # slow
        assert lengths[-1] > 100  # dropped
        assert server.returncode == 0
        assert re.fullmatch(r"(Cancel \d+ running task\(s\), timeout graceful shutdown exceeded\n)?", rest), rest
    finally:
        server.kill()


def test_an_address_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UnipicError, match="nothing can be served"):
        serve_judge("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UnipicError, match="ledger cannot be written"):
        judge_app(ledger=Path("/nowhere/at/all"))
