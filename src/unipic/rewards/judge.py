"""A vision model as a judge of pictures: any that speaks OpenAI's chat protocol.

Each picture is asked about until there is a verdict that is read without doubt, or until its deadline, or until it was
answered too often with what cannot be read: then it has no score. A judge that is away altogether, or a budget that is
spent, ends the run with "try again later" (exit code 75).
The judge's marks become a score as √(fit · quality) / 10, GEdit-Bench's, or by weights.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from unipic.config import Strict
from unipic.errors import BadInput, TryLater
from unipic.rewards.judge_cache import JudgeCache, Rows, key_of
from unipic.rewards.judge_calls import Caller, Refused, Unavailable
from unipic.rewards.judge_limits import Meter, Outage, Pace, Turns
from unipic.rewards.judge_reply import BadReply, Declined, Verdict, completion_of, form_in_words
from unipic.rewards.judge_templates import STANDARD, Template, Templates, read_templates
from unipic.rewards.reward import Reward, Sample

if TYPE_CHECKING:
    import openai

LONGEST_WAIT = 16  # times the first wait before another attempt
MOST_UNREAD = 12  # replies to a sample that cannot be read; if 30% of all are so, one sample in 2 million has as many

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Price = Annotated[float, Field(ge=0)]


MAY_CHANGE = (
    *("base_url", "key_env", "concurrency", "requests_per_minute", "timeout", "deadline", "patience", "wait"),
    *("cache", "prices", "budget"),
)
"""Settings that another start of the same run may have otherwise"""


class JudgeRewardConfig(Strict):
    """model: by its full name, so that the judge stays the same. base_url: where it is served. key_env: the environment
    variable that holds the key; null for a judge without one.

    template: "standard", or a .yaml file of one's own. weights: of marks; null is their geometric mean. temperature:
    null leaves it out of the request. n: choices of a reply, whose scores are averaged. max_tokens: of a choice.
    detail: how closely the judge looks.
    concurrency: calls at a time. requests_per_minute: null sets no pace; both are of this reward in each process, for
    all of its threads. timeout: of a call; deadline: of a score, from its first call; patience: with a judge that is
    away; wait: before the second attempt, doubled up to sixteen times. All in seconds.
    cache: a file of verdicts that need not be asked for again. prices: of a million prompt tokens and a million
    completion tokens. budget: in their currency; what all runs with this cache may cost together.
    """

    may_change: ClassVar = MAY_CHANGE
    kind: Literal["judge"]
    weight: float = 1.0
    model: Annotated[str, Field(min_length=1)] = "gpt-4.1-2025-04-14"
    base_url: str = "https://api.openai.com/v1"
    key_env: Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]*$", max_length=64)] | None = "OPENAI_API_KEY"
    template: str = STANDARD
    weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 0.0
    n: Annotated[int, Field(ge=1, le=8)] = 1
    max_tokens: Annotated[int, Field(ge=16)] = 1000
    detail: Literal["auto", "low", "high"] = "high"
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    timeout: Seconds = 30.0
    deadline: Seconds = 180.0
    patience: Seconds = 60.0
    wait: Seconds = 0.5
    cache: Annotated[str, Field(min_length=1)] | None = None
    prices: tuple[Price, Price] | None = None
    budget: Price | None = None

    @field_validator("base_url")
    @classmethod
    def address_is_plain(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        except ValueError:
            sound = False
        if not sound or not value.isascii() or not value.isprintable() or " " in value:
            raise ValueError("base_url is no address that begins with http:// or https://")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError("base_url is more than a host and a path; a key belongs in the environment, see key_env")
        return value

    @model_validator(mode="after")
    def limits_fit(self) -> JudgeRewardConfig:
        if not self.timeout < self.patience <= self.deadline:
            raise ValueError("timeout must be shorter than patience, and patience no longer than deadline")
        if self.weights is not None and not any(self.weights.values()):
            raise ValueError("one of the weights at least must be above 0")
        if self.budget is not None and (self.prices is None or self.cache is None):
            raise ValueError("a budget needs prices, and a cache, in which it is kept what was spent")
        return self

    def open(self) -> Reward:
        return JudgeReward(self)


@dataclass
class _Asking:
    """What the calls of one `score` share."""

    client: openai.AsyncOpenAI
    rows: Rows | None
    turns: asyncio.Semaphore  # within those of all threads, so that no more tasks than these wait for them


class JudgeReward:
    """See `JudgeRewardConfig`. Raises BadInput for a template, a key or packages that are missing."""

    def __init__(self, config: JudgeRewardConfig) -> None:
        self.config = config
        self.templates = _with_form(read_templates(config.template))
        _check_weights(config, self.templates.marks())
        self.caller = Caller(config.base_url, _key(config.key_env), config.timeout, config.concurrency)
        self.cache = JudgeCache(Path(config.cache).expanduser()) if config.cache else None
        self.turns = Turns(config.concurrency)
        self.pace = Pace(config.requests_per_minute)
        self.outage = Outage(config.patience, config.base_url)
        self.meter = Meter(config.prices)
        self.accepted = False  # a request of this form, ever: now, or when what is in the cache was asked
        self.refusal: Refused | None = None
        self.unread = ""  # why a sample was given up

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """0 to 1. Raises TryLater for a judge that is away, that bars what it took before, and for a budget that is
        spent; BadInput where the key, the address or the request is never accepted, or no answer is ever read. Not to
        be called on an event loop.
        """
        opened: AbstractContextManager[Rows | None] = self.cache.opened() if self.cache else nullcontext()
        with opened as rows:
            try:
                return asyncio.run(self._all(samples, rows))
            except BaseExceptionGroup as group:  # of several calls that found the same
                raise next(e for e in _leaves(group)) from None

    def told(self) -> dict[str, float]:
        """Calls, tokens and costs since this was last asked."""
        return self.meter.told()

    async def _all(self, samples: Sequence[Sample], rows: Rows | None) -> list[float | None]:
        async with self.caller.client() as client, asyncio.TaskGroup() as group:
            asking = _Asking(client, rows, asyncio.Semaphore(self.config.concurrency))
            tasks = [group.create_task(self._one(sample, asking)) for sample in samples]
        if not self.accepted:
            self._check_settings()
        return [task.result() for task in tasks]

    def _check_settings(self) -> None:
        """Where nothing ever went well, it is not the samples that are at fault."""
        if self.refusal:
            where = f"{self.config.base_url}: {self.refusal}"
            raise BadInput("the judge accepts no request", where, "see model, temperature, max_tokens, n and template")
        if self.unread:
            where = f"{self.config.base_url}: {self.unread}"
            raise BadInput("no answer of the judge can be read", where, "see base_url, model and max_tokens")

    async def _one(self, sample: Sample, asking: _Asking) -> float | None:
        template = self.templates.of(sample)
        if template is None:
            return None
        async with asking.turns, self.turns.turn():
            verdicts = await self._verdicts(sample, template, asking)
        return None if verdicts is None else self._score(verdicts)

    async def _verdicts(self, sample: Sample, template: Template, asking: _Asking) -> Sequence[Verdict] | None:
        """Known ones, or new ones; None if there are none to be had."""
        rows = asking.rows
        if rows is None:
            return await self._asked(sample, template, asking)
        pictures = [p for p in (sample.source, sample.picture) if p is not None]
        asked = {**self._parameters(template), "template": template.model_dump(), "detail": self.config.detail}
        key = key_of(asked, sample.text, pictures)
        if (known := rows.get(key, [*template.marks])) is not None:
            self.meter.count("cached")
            self.accepted = True
            return known
        verdicts = await self._asked(sample, template, asking)
        if verdicts is not None:
            rows.put(key, verdicts, {"model": self.config.model, "text": sample.text})
        return verdicts

    async def _asked(self, sample: Sample, template: Template, asking: _Asking) -> Sequence[Verdict] | None:
        """Ask until there is an answer, or the deadline, or too many replies that cannot be read."""
        import stamina

        messages = await asyncio.to_thread(template.messages, sample, self.config.detail)
        request = {**self._parameters(template), "messages": messages}
        await self.pace.turn()
        wait = self.config.wait
        unread = list[str]()
        try:
            async with asyncio.timeout(self.config.deadline):
                async for attempt in stamina.retry_context(
                    self._again, None, None, wait_initial=wait, wait_max=LONGEST_WAIT * wait, wait_jitter=wait
                ):
                    with attempt:
                        if attempt.num > 1:
                            await self.pace.turn()
                        return await self._call(request, template, asking, unread)
        except TimeoutError:
            self.outage.check()
        except Refused as refusal:
            self.refusal = refusal
        except (BadReply, Unavailable, Declined):
            pass
        self.unread = unread[-1] if unread else self.unread
        return None

    def _again(self, failure: Exception) -> bool | float:
        """Whether to try again, and after how many seconds if the judge has said that."""
        after = failure.after if isinstance(failure, Unavailable) else None
        return isinstance(failure, BadReply | Unavailable) if after is None else max(after, self.config.wait)

    async def _call(
        self, request: Mapping[str, Any], template: Template, asking: _Asking, unread: list[str]
    ) -> list[Verdict]:
        """One attempt. unread: why earlier replies were bad. Raises Unavailable, BadReply, Declined."""
        self._check_budget(asking.rows)
        begun = time.monotonic()
        self.meter.count("calls")
        verdicts = None
        try:
            completion = completion_of(await self.caller.ask(asking.client, request))
            if completion.usage:
                cost = self.meter.used(completion.usage)
                if asking.rows:
                    asking.rows.spend(completion.usage, cost)
            elif self.config.budget is not None:
                mend = "leave budget out, or ask a judge whose replies have usage"
                raise BadInput("the judge does not say what it has used", self.config.base_url, mend)
            verdicts = completion.verdicts(template.marks, self.config.n)
        except Unavailable as failure:
            self.outage.failed(begun, str(failure))
            raise
        except BadReply as bad:
            self.outage.answered()
            unread.append(str(bad))
            if len(unread) >= self._most_unread():
                raise Declined("too many replies cannot be read") from None
            raise
        except Declined as declined:
            self.outage.answered()
            self.accepted |= not isinstance(declined, Refused)
            raise
        finally:
            if verdicts is None:
                self.meter.count("failed")
        self.outage.answered()
        self.caller.heard = self.accepted = True
        return [Verdict(verdict.marks, self.caller.clean(verdict.reasons)) for verdict in verdicts]

    def _most_unread(self) -> int:
        """Once a sample was given up and none was ever answered well, one reply is enough to tell of the others."""
        return 1 if self.unread and not self.accepted else MOST_UNREAD

    def _check_budget(self, rows: Rows | None) -> None:
        budget = self.config.budget
        if budget is not None and rows is not None and (spent := rows.spent()) >= budget:
            mend = "raise the budget and run the same command again"
            raise TryLater("the judge's budget is spent", f"budget {budget:g}, spent {spent:.4g}", mend)

    def _parameters(self, template: Template) -> dict[str, Any]:
        """Of a request, all but its messages."""
        config = self.config
        form = {"name": "verdict", "strict": True, "schema": template.form()}
        chosen = {"n": config.n} if config.n > 1 else {}
        heat = {} if config.temperature is None else {"temperature": config.temperature}
        return {
            "model": config.model,
            "response_format": {"type": "json_schema", "json_schema": form},
            "max_completion_tokens": config.max_tokens,
            **chosen,
            **heat,
        }

    def _score(self, verdicts: Sequence[Verdict]) -> float | None:
        """The mean over choices; None if one of them could not tell."""
        scores = [score_of(verdict.marks, self.config.weights) for verdict in verdicts]
        known = [score for score in scores if score is not None]
        return math.fsum(known) / len(known) if len(known) == len(scores) else None


def score_of(marks: Mapping[str, float | None], weights: Mapping[str, float] | None) -> float | None:
    """Marks of 0 to 10 → 0 to 1: their geometric mean, or their mean by weights. None if a mark is None."""
    known = {name: mark for name, mark in marks.items() if mark is not None}
    if len(known) < len(marks):
        return None
    if weights is None:
        return float(math.prod(known.values()) ** (1 / len(known)) / 10)
    return math.fsum(weights[name] * mark for name, mark in known.items()) / sum(weights[name] for name in known) / 10


def _with_form(templates: Templates) -> Templates:
    """Templates that say in words, too, which form the answer shall have."""
    given = {"edit": templates.edit, "generate": templates.generate}
    said = {
        task: each.model_copy(update={"system": f"{each.system}\n{form_in_words(each.marks)}"})
        for task, each in given.items()
        if each is not None
    }
    return templates.model_copy(update=said)


def _check_weights(config: JudgeRewardConfig, marks: Mapping[str, set[str]]) -> None:
    if config.weights is None:
        return
    for task, names in marks.items():
        if not names <= config.weights.keys() or not any(config.weights[name] for name in names):
            what = f"weights need each mark that a picture gets (task: {task}), one of them above 0"
            raise BadInput(what, f"weights: {', '.join(config.weights)}", f"give {', '.join(sorted(names))}")
    if unknown := config.weights.keys() - set().union(*marks.values()):
        known = ", ".join(sorted(set().union(*marks.values())))
        raise BadInput("there is no such mark", f"weights: {', '.join(sorted(unknown))}", f"there are {known}")


def _key(variable: str | None) -> str | None:
    """From the environment."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        mend = f"export {variable}=…, or set key_env: null for a judge that needs none"
        raise BadInput("the key of the judge is not in the environment", f"key_env: {variable}", mend)
    if not key.isascii() or not key.isprintable() or " " in key:
        raise BadInput("what stands in the environment is no key", f"key_env: {variable}", "set it anew")
    return key


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    return [leaf for e in group.exceptions for leaf in (_leaves(e) if isinstance(e, BaseExceptionGroup) else [e])]
