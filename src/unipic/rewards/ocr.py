"""Rendered text: whether the words that a prompt asks for stand in the picture, as a text recogniser reads them.

The words are those in quotation marks, or a spec's `text`. The recogniser (rapidocr, extra `ocr`) has its models in its
package; nothing is downloaded.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL.Image import Image

from unipic.errors import UnipicError
from unipic.rewards.reward import Sample

LONGEST = 500  # characters that are compared
LARGEST = 960  # pixels of a side in which text is looked for; larger pictures are scaled down
QUOTED = re.compile(
    r'"([^"]+)"|“([^“”]+)”|„([^„“”]+)[“”]|«([^«»]+)»|「([^「」]+)」|‘([^‘’]+)’|(?<!\w)\'((?:[^\']|(?<=\w)\'(?=\w))+)\'(?!\w)'
)


def wanted(sample: Sample) -> str | None:
    """The text asked for: a spec's `text`, else what the prompt has in quotation marks; None if neither is there."""
    if isinstance(sample.spec, Mapping) and isinstance(sample.spec.get("text"), str):
        return str(sample.spec["text"]).strip() or None
    return " ".join("".join(found) for found in QUOTED.findall(sample.text)).strip() or None


def distance(wanted: str, read: str, anywhere: bool = False) -> int:
    """Letters to insert, remove or change (Levenshtein). anywhere: to the nearest part of what is read."""
    costs = [0] * (len(read) + 1) if anywhere else list(range(len(read) + 1))
    for i, letter in enumerate(wanted, 1):
        before, costs[0] = costs[0], i
        for j, other in enumerate(read, 1):
            before, costs[j] = costs[j], min(before + (letter != other), costs[j] + 1, costs[j - 1] + 1)
    return min(costs) if anywhere else costs[-1]


class OcrReward:
    """1 − edit distance between the text wanted and the text read, over the longer of the two: 0 to 1.

    ignore_case, ignore_spaces: in both texts. anywhere: other text beside it does not count, as in Flow-GRPO, where the
    distance is over the text wanted. threads: of the recogniser; it reads one picture at a time. Raises UnipicError
    where it is not installed.
    """

    def __init__(
        self, ignore_case: bool = True, ignore_spaces: bool = True, anywhere: bool = False, threads: int = 1
    ) -> None:
        self.ignore_case, self.ignore_spaces, self.anywhere = ignore_case, ignore_spaces, anywhere
        self.engine, self.lock = _engine(threads), threading.Lock()

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """None where no text is asked for."""
        asked = [wanted(sample) for sample in samples]
        return [
            None if text is None else self.likeness(text, self.read(s.picture))
            for text, s in zip(asked, samples, strict=True)
        ]

    def read(self, picture: Image) -> str:
        """The text in a picture, line after line."""
        pixels = np.asarray(picture.convert("RGB"))[:, :, ::-1]
        with self.lock:
            found = self.engine(np.ascontiguousarray(pixels)).txts
        return " ".join(found or ())

    def likeness(self, wanted: str, read: str) -> float:
        wanted, read = self._plain(wanted), self._plain(read)
        longest = len(wanted) if self.anywhere else max(len(wanted), len(read))
        return max(0.0, 1 - distance(wanted, read, self.anywhere) / longest) if longest else 1.0

    def _plain(self, text: str) -> str:
        """As it is compared: full-width letters and ligatures as their plain forms, one space between words."""
        text = unicodedata.normalize("NFKC", text)
        text = text.casefold() if self.ignore_case else text
        return ("" if self.ignore_spaces else " ").join(text.split())[:LONGEST]


def _engine(threads: int) -> Any:
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        what = "the text recogniser is not installed"
        raise UnipicError(what, f"reward of kind ocr: {error}", 'run pip install "unipic[ocr]"') from None
    return RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.use_cls": False,  # text upside down is not what was asked for
            "Det.limit_type": "max",
            "Det.limit_side_len": LARGEST,
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )
