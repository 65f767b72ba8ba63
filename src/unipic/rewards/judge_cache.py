"""Verdicts that were paid for, kept in a file (SQLite, rows of JSON), and what they have cost in all.

Several threads and processes may use one file. A file that is damaged, or is something else, is an error that names it:
nothing in it is overwritten.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL.Image import Image

from unipic.errors import TryLater, UnipicError
from unipic.rewards.judge_reply import BadReply, Usage, Verdict, verdict_of
from unipic.rewards.judge_templates import REASONS

APPLICATION = 0x756E6A31  # "unj1": says that a database is one of ours, of this form
PATIENCE = 60.0  # seconds in which another process may write
TABLES = """
CREATE TABLE verdicts (key TEXT PRIMARY KEY, row TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE spent (calls INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
                    cost REAL NOT NULL);
INSERT INTO spent VALUES (0, 0, 0, 0.0);
"""


def key_of(asked: Mapping[str, Any], text: str, pictures: Sequence[Image]) -> str:
    """SHA-256 of all that a verdict depends on: model, template, parameters, words, and pictures as they are sent."""
    shown = [picture.convert("RGB") for picture in pictures]
    digest = hashlib.sha256()
    pieces = [json.dumps(asked, sort_keys=True).encode(), text.encode(errors="surrogatepass")]
    pieces += [piece for p in shown for piece in (f"{p.mode} {p.width}x{p.height}".encode(), p.tobytes())]
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "big") + piece)
    return digest.hexdigest()


class JudgeCache:
    """A file, made if it is missing. Raises UnipicError if it cannot be used, or is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._told():
            try:
                if not os.path.lexists(path):
                    self._make()
                size = path.stat().st_size
            except OSError as error:
                raise self._unusable(error.strerror or str(error)) from None
            if size == 0:
                raise self.damaged("it is empty")
            with closing(self._connect()) as database:
                if database.execute("PRAGMA application_id").fetchone() != (APPLICATION,):
                    raise self.damaged("it is no cache of a judge")
                if (fault := database.execute("PRAGMA quick_check(1)").fetchone()) != ("ok",):
                    raise self.damaged(str(fault[0]))
                database.execute("UPDATE spent SET calls = calls")  # that it may be written is found out now

    @contextmanager
    def opened(self) -> Iterator[Rows]:
        """For the thread that asks."""
        with self._told(), closing(self._connect()) as database:
            yield Rows(self, database)

    def _connect(self) -> sqlite3.Connection:
        where = f"{self.path.absolute().as_uri()}?mode=rw"  # never an empty one in place of one that has gone
        return sqlite3.connect(where, uri=True, timeout=PATIENCE, isolation_level=None)

    def _make(self) -> None:
        """Whole or not at all, and by one process only."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.parent / f".{self.path.name[:40]}.{secrets.token_hex(8)}"
        try:
            with closing(sqlite3.connect(aside)) as database:
                database.execute("PRAGMA journal_mode = WAL")  # readers and a writer do not wait for one another
                database.executescript(f"PRAGMA application_id = {APPLICATION}; BEGIN; {TABLES} COMMIT;")
            with suppress(FileExistsError):
                os.link(aside, self.path)
        finally:
            aside.unlink(missing_ok=True)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What the database says, as our own errors."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            if code == sqlite3.SQLITE_FULL:
                mend = "free space and run the same command again"
                raise TryLater("the judge's cache cannot be written: the disk is full", str(self.path), mend) from None
            if isinstance(error, sqlite3.OperationalError):
                raise self._unusable(str(error)) from None
            raise self.damaged(str(error)) from None

    def _unusable(self, why: str) -> UnipicError:
        return UnipicError("the judge's cache cannot be used", f"{self.path}: {why}", "mend that, or name another file")

    def damaged(self, why: str) -> UnipicError:
        mend = "restore it, or move it away: what it knew is then asked for, and paid for, again"
        return UnipicError("the judge's cache is damaged", f"{self.path}: {why}", mend)


class Rows:
    """An open cache, of one thread."""

    def __init__(self, cache: JudgeCache, database: sqlite3.Connection) -> None:
        self.cache, self.database = cache, database

    def get(self, key: str, marks: Sequence[str]) -> list[Verdict] | None:
        """What was said; None if that is not known."""
        found = self.database.execute("SELECT row FROM verdicts WHERE key = ?", (key,)).fetchone()
        if found is None:
            return None
        try:
            return [verdict_of(json.dumps(each), marks) for each in json.loads(found[0])["verdicts"]]
        except (ValueError, LookupError, TypeError, BadReply):
            raise self.cache.damaged(f"the row {key} is no verdict") from None

    def put(self, key: str, verdicts: Sequence[Verdict], of: Mapping[str, Any]) -> None:
        """of: what a reader of the file wants to know. What another process has put there first stays."""
        said = [{**verdict.marks, REASONS: verdict.reasons} for verdict in verdicts]
        row = json.dumps({**of, "verdicts": said})
        self.database.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?)", (key, row))

    def spend(self, usage: Usage, cost: float) -> None:
        self.database.execute(
            "UPDATE spent SET calls = calls + 1, prompt_tokens = prompt_tokens + ?, "
            "completion_tokens = completion_tokens + ?, cost = cost + ?",
            (usage.prompt, usage.completion, cost),
        )

    def spent(self) -> float:
        """What all calls have cost whose verdicts were kept here, or would have been."""
        return float(self.database.execute("SELECT cost FROM spent").fetchone()[0])
