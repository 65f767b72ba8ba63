"""The colours of objects, named by CLIP (Radford et al. 2021) as GenEval asks it: zero-shot, ViT-L/14.

An object is laid on grey (#999) and cut out along its box. A colour's classifier is the mean of three sentences'
embeddings, each of length one; the likeliest of ten colours is the object's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from unipic.models.checkpoint import blank_transformers, fill_transformers, read_component
from unipic.models.find import find_part
from unipic.models.folder import ModelFolder
from unipic.models.text import token_ids
from unipic.models.tokenizers import check_ids, load_tokenizer
from unipic.rewards.detector import device_of
from unipic.rewards.geneval import CLIP, Detection

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
GROUND = "#999"


class Clip(NamedTuple):
    """The model, and its tokenizer."""

    model: Any
    tokenizer: Any


class Colors:
    """Objects → the names of their colours. name: a folder, or a hub name in the hub's cache; loaded when first used.

    batch: objects in a forward, of whichever pictures. In float32. May be called from several threads: it is loaded
    once, and computes for one at a time.
    """

    def __init__(self, name: str = CLIP, batch: int = 64, device: str = "auto") -> None:
        self.name, self.batch, self.device = name, batch, device_of(device)
        self._classifiers: dict[str, Tensor] = {}
        self.lock = threading.Lock()

    @cached_property
    def clip(self) -> Clip:
        model, tokenizer = load_clip(find_part(self.name, "clip"))
        return Clip(model.to(self.device), tokenizer)

    @torch.no_grad()
    def __call__(self, objects: Sequence[tuple[Image.Image, Detection]]) -> list[str]:
        if not objects:
            return []
        with self.lock:
            return self._named(objects)

    def _named(self, objects: Sequence[tuple[Image.Image, Detection]]) -> list[str]:
        self._learn({detection.label for _, detection in objects} - self._classifiers.keys())
        side, seen = self.clip.model.config.vision_config.image_size, []
        for start in range(0, len(objects), self.batch):
            part = objects[start : start + self.batch]
            pixels = torch.stack([prepared(cut_out(*each), side) for each in part]).to(self.device)
            seen.append(normalize(self.clip.model.get_image_features(pixels).pooler_output, dim=-1))
        classifiers = torch.stack([self._classifiers[detection.label] for _, detection in objects])  # N×10×D
        likeliest = (classifiers @ torch.cat(seen)[:, :, None])[:, :, 0].argmax(1)
        return [COLORS[i] for i in likeliest.tolist()]

    def _learn(self, names: Iterable[str]) -> None:
        """What the ten colours of a class look like to CLIP, 10×D, of length one."""
        for name in sorted(names):
            texts = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
            model, length = self.clip.model, self.clip.model.config.text_config.max_position_embeddings
            ids = token_ids(self.clip.tokenizer, texts, length).to(self.device)
            told = normalize(model.get_text_features(ids).pooler_output, dim=-1)
            self._classifiers[name] = normalize(told.view(len(COLORS), len(TEMPLATES), -1).mean(1), dim=-1)


def cut_out(picture: Image.Image, detection: Detection) -> Image.Image:
    """What is in a detection's box, grey where its mask is not; a box thinner than a pixel keeps one."""
    x0, y0, x1, y1 = (round(side) for side in detection.box)
    box = (x0, y0, max(x1, x0 + 1), max(y1, y0 + 1))
    cut = picture.convert("RGB").crop(box)
    if detection.mask is None:
        return cut
    mask = Image.fromarray(detection.mask.astype(np.uint8) * 255).crop(box)
    return Image.composite(cut, Image.new("RGB", cut.size, GROUND), mask)


def prepared(picture: Image.Image, side: int) -> Tensor:
    """3×side×side: the shorter side scaled to `side` (bicubic), the middle of the longer one, normalised.

    Only the middle is scaled: in whole, a cut-out of one pixel by a thousand would take a quarter of a million rows.
    """
    size = tuple(int(side * length / min(picture.size)) for length in picture.size)
    (left, right), (top, bottom) = (
        [(round((whole - side) / 2) + end) * own / whole for end in (0, side)]
        for own, whole in zip(picture.size, size, strict=True)
    )
    middle = picture.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, right, bottom))
    pixels = np.asarray(middle, np.float32) / 255
    mean, std = np.array(OPENAI_CLIP_MEAN, np.float32), np.array(OPENAI_CLIP_STD, np.float32)
    return torch.from_numpy((pixels - mean) / std).permute(2, 0, 1)


def load_clip(folder: ModelFolder) -> Clip:
    """CLIP from its published folder, in float32 on the CPU. Raises BadModel."""
    blank = blank_transformers(CLIPModel, CLIPConfig, folder.config("clip", at=""), folder.path)
    model = fill_transformers(blank, read_component(folder, "clip", None, at=""), folder.path, torch.float32)
    tokenizer = load_tokenizer(folder, "", CLIPTokenizer)
    check_ids(tokenizer, model.config.text_config.vocab_size, str(folder.path))
    return Clip(model, tokenizer)
