"""Questions about pictures of the world, with their answers; and what a picture will be, from a prompt.

The latter, `foresee`, stands for what a language model has read before it is given queries: asked to draw or to
edit, it says what the picture will show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL.Image import Image

from unipic.data.source import shares
from unipic.data.world import MOST_LIMITED, chosen
from unipic.errors import BadInput
from unipic.types import GENERATE_PREFIX, check_number, check_whole
from unipic.world import edits, language
from unipic.world import scene as scenes
from unipic.world.edits import Edit
from unipic.world.language import Prompt, pick
from unipic.world.plain import plain_scene
from unipic.world.questions import KINDS, QA, questions
from unipic.world.render import render
from unipic.world.scene import Scene

FORESEE = "foresee"
ALWAYS = {"recognition", "background", "caption"}  # kinds that every scene has something for


@dataclass(frozen=True)
class Asked:
    """picture, scene: what is seen; None where there is nothing yet. qa: of one of `questions.KINDS`, or "foresee".

    spec: what is foreseen, where it can be told thing by thing.
    """

    id: str
    qa: QA
    picture: Image | None = field(repr=False)
    scene: Scene | None = field(default=None, repr=False)
    spec: Prompt | Edit | None = field(default=None, repr=False)


class QuestionSource:
    """Sample i is a function of (seed, split, i).

    foresee: share of samples. kinds: weights of `questions.KINDS` among the others; equal if None. A kind that a scene
    has nothing for leaves its share to the rest. plain: share of foreseen prompts whose scenes are the plainest of
    those they leave open (see `world.plain`). limit: draw from this many samples alone.
    """

    def __init__(
        self,
        seed: int = 0,
        split: str = "train",
        *,
        foresee: float = 0.3,
        kinds: Mapping[str, float] | None = None,
        plain: float = 0.0,
        limit: int | None = None,
    ) -> None:
        check_number("share of foreseeing", foresee, 0, 1)
        check_number("share of plain scenes", plain, 0, 1)
        self.kinds = shares("kind of question", dict.fromkeys(KINDS, 1.0) if kinds is None else kinds, KINDS)
        if not self.kinds.keys() & ALWAYS:
            what = "there would be nothing to ask about some scenes"
            raise BadInput(what, f"kinds of questions {tuple(self.kinds)}", f"add one of {', '.join(sorted(ALWAYS))}")
        if limit is not None:
            check_whole("limit of samples", limit, 1, MOST_LIMITED)
        self.seed, self.split, self.foresee, self.plain, self.limit = seed, split, foresee, plain, limit

    def load(self, number: int) -> Asked:
        number = number % self.limit if self.limit else number
        seed = self.seed << 48 | number
        rng = np.random.default_rng([scenes.SPLITS.index(self.split), seed, len(KINDS)])
        id = f"{self.split}-{seed:x}"
        if rng.random() < self.foresee:
            return self._foreseen(id, seed, rng)
        scene = scenes.sample(seed, self.split)
        kinds = dict(self.kinds)
        while not (asked := questions(scene, rng, (kind := chosen(rng, kinds),))):
            del kinds[kind]
        return Asked(id, pick(rng, asked), render(scene), scene)

    def _foreseen(self, id: str, seed: int, rng: np.random.Generator) -> Asked:
        if rng.random() < 0.5:
            edit = edits.sample(seed, self.split)
            qa = QA(edit.instruction, language.caption(edit.target), FORESEE)
            return Asked(id, qa, render(edit.source), edit.source, edit)
        scene = scenes.sample(seed, self.split)
        if rng.random() >= 0.5:
            dense = language.dense(scene, rng)
            return Asked(id, QA(GENERATE_PREFIX + dense.text, language.caption(scene), FORESEE), None)
        said = language.prompts(scene, rng)
        if self.plain and rng.random() < self.plain:
            scene = plain_scene(said, (scene.width, scene.height), rng) or scene
        return Asked(id, QA(GENERATE_PREFIX + said.text, language.caption(scene), FORESEE), None, spec=said)
