"""What a judge has answered: counts to be asked for, and a file to which each judgement is appended."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unipic.errors import UnipicError


class Ledger:
    """Counts are of this process; a file that exists is continued."""

    def __init__(self, path: Path | None) -> None:
        self.calls = 0
        self.answers = 0
        self.faults: Counter[str] = Counter()
        self.judgements: set[str] = set()
        try:
            self._file = path.open("a", encoding="utf-8") if path else None
        except OSError as error:
            raise UnipicError("the ledger cannot be written", f"{path}: {error.strerror}", "name another") from None

    def next_call(self) -> int:
        """Its number, from 1."""
        self.calls += 1
        return self.calls

    def write(self, call: int, key: str, *, answer: Mapping[str, Any] | None = None, fault: str | None = None) -> None:
        """key: of what was judged. answer: what was said in full; or the fault that came instead."""
        if fault:
            self.faults[fault] += 1
        else:
            self.answers += 1
            self.judgements.add(key)
        if self._file:
            said = {"fault": fault} if fault else {"answer": answer}
            self._file.write(json.dumps({"call": call, "key": key, **said}) + "\n")
            self._file.flush()

    def summary(self) -> dict[str, Any]:
        """judgements: how many different ones were answered."""
        return {
            "calls": self.calls,
            "answers": self.answers,
            "faults": dict(self.faults),
            "judgements": len(self.judgements),
        }
