"""Skywork-EditReward: Qwen2.5-VL that has read instruction, source and result says how good the edit is (paper §3.2).

The state of the prompt's last token, after the final norm, passes a layer norm and a linear layer to three scores:
how well the instruction was followed, the quality of the picture, and both together. The third is learnt like the
others, not √(following · quality): of uncertain parts, the product of the means is not the mean of the product, and a
judge may weigh them in its own way. The paper names the regression and Qwen2.5-VL-7B; prompt and head are ours.

Instruction and source stand first. What they are read as does not depend on the result, so that edits of the same
source, as a group of reinforcement is, share it: it is encoded once, and each result reads its keys and values.
Positions are the library's own three-dimensional ones, as in `MLLM.describe`. The result is shown as a film of two
frames, itself and how far it is from its source, which is black where nothing changed: a patch of Qwen2.5-VL holds two
frames anyway, of a still the same one twice. What an edit changed is then seen within each patch, and need not be found
by attention between two pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from PIL import ImageChops
from PIL.Image import Image
from torch import Tensor, nn

from unipic.errors import BadModel
from unipic.models.checkpoint import describing_errors, fill, read_component
from unipic.models.find import find_mllm
from unipic.models.folder import ModelFolder
from unipic.models.mllm import MLLM, load_mllm

Output = Literal["instruction_following", "quality", "overall"]
ORDER = ("instruction", "source", "result and difference")  # as a prompt has them, the last as one film
OUTPUTS: tuple[Output, ...] = ("instruction_following", "quality", "overall")
FULL = 10.0  # the best score
QUESTION = "\nWas this done, and is the picture good?"  # after the result


@dataclass(frozen=True)
class Edited:
    """Results of one source and one instruction: what a group shares is read once."""

    source: Image = field(repr=False)
    instruction: str
    results: tuple[Image, ...] = field(repr=False)


class RewardHead(nn.Module):
    """States, N×width → scores, N×3 of `OUTPUTS`, as shares of `FULL`. Computes in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.scores = nn.LayerNorm(width), nn.Linear(width, len(OUTPUTS))
        nn.init.constant_(self.scores.bias, 0.5)
        about = {"outputs": list(OUTPUTS), "full": FULL, "reads": list(ORDER), "width": width}
        self.config = {"_class_name": "EditRewardHead"} | about

    def forward(self, states: Tensor) -> Tensor:
        scores: Tensor = self.scores(self.norm(states.float()))
        return scores


class RewardNet(nn.Module):
    """Language model and head as one module, whose weights may be sharded."""

    def __init__(self, mllm: nn.Module, head: RewardHead) -> None:
        super().__init__()
        self.mllm, self.head = mllm, head

    def ask(self, states: Callable[[], Tensor]) -> Tensor:
        """Scores of states that are computed within: the outermost weights are whole meanwhile."""
        scores: Tensor = self.head(states())
        return scores


class RewardModel:
    """A multimodal language model with a head that scores edits."""

    def __init__(self, mllm: MLLM, head: RewardHead) -> None:
        if (mine := head.config["width"]) != (its := mllm.width):
            what = f"the head expects a language model of width {mine}, this one has {its}"
            raise BadModel(what, "reward_head/config.json: width", "give the language model that it was trained with")
        self.mllm, self.net = mllm, RewardNet(mllm.model, head.to(mllm.device))

    @torch.no_grad()
    def score(self, edits: Sequence[Edited], batch: int = 16, *, bounded: bool = True) -> Tensor:
        """Scores of all results in their order, N×3 of `OUTPUTS`, 0 to 10. batch: of results in a forward.

        bounded: what the head puts below 0 or above 10 is 0 or 10. A reward goes without: of two edits that are
        hopeless one may still be the better.
        """
        parts = [self.predict(part) for part in _batches(edits, batch)]
        shares = torch.cat([torch.zeros(0, len(OUTPUTS)), *(part.float().cpu() for part in parts)])
        return (shares.clamp(0, 1) if bounded else shares) * FULL

    def predict(self, edits: Sequence[Edited], *, shared: bool = True) -> Tensor:
        """N×3 as shares of `FULL`, unbounded, with gradients for whoever trains.

        shared: read what a group shares once. Otherwise, and wherever gradient checkpointing keeps no keys and values,
        every result has a whole prompt of its own.
        """
        model = self.mllm.model.model.language_model
        keeps = not (model.training and model.gradient_checkpointing)
        return self.net.ask(lambda: self._states(edits, shared and keeps))

    def _states(self, edits: Sequence[Edited], shared: bool) -> Tensor:
        """The last token's state of each result's prompt: N×width."""
        mllm = self.mllm
        of = [number for number, edit in enumerate(edits) for _ in edit.results]
        sources = [mllm.pixels(edit.source) for edit in edits]
        results = [self._film(edit.source, result) for edit in edits for result in edit.results]
        seen = mllm.see([*sources, *results])
        seen_sources, seen_results = seen[: len(edits)], seen[len(edits) :]
        before = [self._begun(e.instruction, grid) for e, (_, grid) in zip(edits, sources, strict=True)]
        after = [self._ended(grid) for _, grid in results]
        grids, ends = [grid for _, grid in sources], [grid for _, grid in results]
        if not shared:
            rows = [[*before[group], *end] for group, end in zip(of, after, strict=True)]
            pairs = [grid for group, end in zip(of, ends, strict=True) for grid in (grids[group], end)]
            tokens = [each for i, group in enumerate(of) for each in (seen_sources[group], seen_results[i])]
            embeds, mask, positions = self._read(rows, pairs, tokens)
            states = self._run(embeds, mask, positions, use_cache=False).last_hidden_state
            return _last(states, mask)
        embeds, mask, positions = self._read(before, grids, seen_sources)
        known = self._run(embeds, mask, positions, use_cache=True).past_key_values
        which = torch.tensor(of, device=mask.device)
        known.batch_select_indices(which)
        start = positions.masked_fill(mask == 0, -1).amax(dim=(0, 2))[which] + 1
        embeds, own, positions = self._read(after, ends, seen_results)
        whole = torch.cat([mask[which], own], dim=1)
        positions = positions + start[None, :, None]
        states = self._run(embeds, whole, positions, use_cache=True, past_key_values=known).last_hidden_state
        return _last(states, own)

    def _film(self, source: Image, result: Image) -> tuple[Tensor, Tensor]:
        """Patches of two frames, and their grid: the result, and its distance from the source in each colour."""
        fitted = source if source.size == result.size else source.resize(result.size)
        changed = ImageChops.difference(fitted, result)
        processor = self.mllm.image_processor
        frames, pixels = processor.temporal_patch_size, processor.patch_size**2
        (first, grid), (second, _) = self.mllm.pixels(result), self.mllm.pixels(changed)
        shown, apart = (patches.view(len(patches), -1, frames, pixels) for patches in (first, second))
        return torch.cat([shown[:, :, : frames // 2], apart[:, :, frames // 2 :]], dim=2).flatten(1), grid

    def _run(self, embeds: Tensor, mask: Tensor, positions: Tensor, **more: Any) -> Any:
        model = self.mllm.model.model.language_model
        return model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, **more)

    def _begun(self, instruction: str, grid: Tensor) -> list[int]:
        """Token ids of a user's turn up to the result. An instruction is text, never a special token."""
        mllm = self.mllm
        start = [mllm.special["<|im_start|>"], *mllm.plain("user\n")]
        return [*start, *mllm.plain(instruction + "\n"), *self._shown(grid)]

    def _ended(self, grid: Tensor) -> list[int]:
        """From the result to where the answer would begin."""
        mllm, special = self.mllm, self.mllm.special
        rest = [*mllm.plain(QUESTION), special["<|im_end|>"], *mllm.plain("\n"), special["<|im_start|>"]]
        return [*self._shown(grid), *rest, *mllm.plain("assistant\n")]

    def _shown(self, grid: Tensor) -> list[int]:
        special = self.mllm.special
        pads = int(grid.prod()) // self.mllm.image_processor.merge_size**2
        return [special["<|vision_start|>"], *[special["<|image_pad|>"]] * pads, special["<|vision_end|>"]]

    def _read(
        self, rows: Sequence[list[int]], grids: Sequence[Tensor], seen: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of rows, right-padded, B×L×width; their mask, B×L; positions from 0, 3×B×L."""
        ids, mask = self.mllm.padded(rows)
        kinds = (ids == self.mllm.special["<|image_pad|>"]).int()
        model, shapes = self.mllm.model.model, torch.stack(list(grids)).to(ids.device)
        positions, _ = model.get_rope_index(ids, kinds, image_grid_thw=shapes, attention_mask=mask)
        return self.mllm.embed(ids, seen), mask, positions


def _last(states: Tensor, mask: Tensor) -> Tensor:
    """Of each row the state of its last token."""
    return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]


def _batches(edits: Sequence[Edited], batch: int) -> Iterator[list[Edited]]:
    """As many results in a forward as may be; a group is parted only where it does not fit."""
    part: list[Edited] = []
    room = batch
    for edit in edits:
        rest = edit.results
        if room < len(rest) <= batch:  # it fits into the next
            yield part
            part, room = [], batch
        while rest:
            taken, rest = rest[:room], rest[room:]
            part.append(Edited(edit.source, edit.instruction, taken))
            room -= len(taken)
            if not room:
                yield part
                part, room = [], batch
    if part:
        yield part


def blank_head(folder: ModelFolder) -> RewardHead:
    """The head that a folder describes, without its weights."""
    config, where = folder.config("reward_head"), folder.root / "reward_head"
    outputs, full = config.get("outputs"), config.get("full")
    if outputs != list(OUTPUTS) or full != FULL:
        what = f"the head gives {outputs!r} of {full!r}; read are {', '.join(OUTPUTS)} of {FULL:g}"
        raise BadModel(what, str(where / "config.json"), "save or download the model again")
    if (reads := config.get("reads")) != list(ORDER):
        what = f"the head learnt from prompts of {reads!r}; they are {', '.join(ORDER)} now"
        raise BadModel(what, str(where / "config.json"), "train it again with this version")
    if type(width := config.get("width")) is not int or not 0 < width < 2**20:
        raise BadModel(f"width is {width!r}, no number of channels", str(where / "config.json"), "get it again")
    with describing_errors(where), torch.device("meta"):
        return RewardHead(width)


def load_reward_model(folder: ModelFolder, dtype: torch.dtype, device: torch.device) -> RewardModel:
    """From a folder with `reward_head/` and `mllm/`. Raises BadModel for another."""
    language = find_mllm(folder, None) if folder.kind == "reward" else None
    if language is None:
        mend = "give one that `unipic train` made of an edit-reward recipe"
        raise BadModel("this is no reward model: it has no reward_head", str(folder.root), mend)
    blank = blank_head(folder)
    head: RewardHead = fill(blank, read_component(folder, "reward_head", torch.float32), folder.root / "reward_head")
    mllm = load_mllm(language, dtype, device)
    mllm.model.to(device)
    return RewardModel(mllm, head)


def new_head(width: int, seed: int) -> RewardHead:
    """An untrained head, which says about half of everything; a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = RewardHead(width)
        nn.init.normal_(head.scores.weight, std=0.1 / math.sqrt(width))
    return head
