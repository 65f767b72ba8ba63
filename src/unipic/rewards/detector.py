"""Objects in pictures by Mask2Former (Cheng et al. 2022), trained on COCO's instances, as GenEval asks it.

A picture is scaled to a shorter side of 800 pixels, the longer at most 1333, and padded to multiples of 32. Of 100
queries × 80 classes the best 100 are objects; each scores its class's probability times the mean probability within its
mask, and its box is that mask's. The benchmark's script has mmdetection's weights; those published for transformers
were trained by Mask2Former's authors, and see pictures scaled as they did it (bilinear, smoothed where smaller), so
scores may differ a little.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad
from transformers import Mask2FormerConfig, Mask2FormerModel, Mask2FormerPreTrainedModel

from unipic.errors import BadModel
from unipic.models.checkpoint import blank_transformers, fill_transformers, read_component
from unipic.models.find import find_part
from unipic.models.folder import ModelFolder
from unipic.models.placement import Placement
from unipic.rewards.geneval import DETECTOR, THRESHOLD, Detection

SHORTER, LONGER, MULTIPLE = 800, 1333, 32  # pixels
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, of 255
MOST = 100  # objects of a picture

Size = tuple[int, int]
"""Width and height in pixels."""

# COCO's 80 classes in its order, by the names that GenEval's prompts give them.
CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich"),
    *("orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed"),
    *("dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
)


class Segmenter(Mask2FormerPreTrainedModel):  # type: ignore[misc]  # transformers is untyped
    """transformers' Mask2Former without its loss, which needs scipy: pictures → classes and masks of each query."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = Mask2FormerModel(config)
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
        self.post_init()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """B×3×H×W → logits of classes and of none, B×Q×(C+1), and of masks, B×Q×H/4×W/4."""
        output = self.model(pixel_values=pixels, output_hidden_states=True, return_dict=True)
        states = output.transformer_decoder_intermediate_states[-1].transpose(0, 1)
        return self.class_predictor(states), output.masks_queries_logits[-1]


class Detector:
    """Pictures → their objects. name: a folder, or a hub name in the hub's cache; it is loaded when first used.

    batch: pictures in a forward, which are of one size. shorter, longer: bounds of a picture's sides, in pixels. In
    float32: thresholds are sharp. May be called from several threads: it is loaded once, and computes for one at a
    time.
    """

    def __init__(
        self, name: str = DETECTOR, batch: int = 8, device: str = "auto", shorter: int = SHORTER, longer: int = LONGER
    ) -> None:
        self.name, self.batch, self.shorter, self.longer = name, batch, shorter, longer
        self.device = device_of(device)
        self.lock = threading.Lock()

    @cached_property
    def model(self) -> Any:
        return load_segmenter(find_part(self.name, "detector")).to(self.device)

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> list[list[Detection]]:
        """Of each picture, those that score more than GenEval's lower threshold, best class first."""
        by_size: dict[tuple[int, int], list[int]] = {}
        for i, picture in enumerate(pictures):
            by_size.setdefault(picture.size, []).append(i)
        found: list[list[Detection]] = [[] for _ in pictures]
        for size, members in by_size.items():
            inner = scaled(size, self.shorter, self.longer)
            for start in range(0, len(members), self.batch):
                part = members[start : start + self.batch]
                pixels = torch.stack([prepared(pictures[i], inner) for i in part])
                padded = (pixels.shape[3], pixels.shape[2])
                with self.lock:  # a device has memory for one forward, and gains nothing by several
                    for i, classes, masks in zip(part, *self.model(pixels.to(self.device)), strict=True):
                        found[i] = objects(classes, masks, padded, inner, size)
        return found


def device_of(name: str) -> torch.device:
    """Of the processes of a run each has a GPU of its own, also for the thread that scores."""
    if name == "auto" and torch.cuda.is_available():
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return Placement.choose(name).device


def prepared(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """3×H×W: scaled to `size`, normalised, and padded on the right and below with the mean colour."""
    pixels = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BILINEAR), np.float32)
    normalised = torch.from_numpy((pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)).permute(2, 0, 1)
    return pad(normalised, (0, -size[0] % MULTIPLE, 0, -size[1] % MULTIPLE))


def scaled(size: Size, shorter: int, longer: int) -> Size:
    """A picture's size, in proportion, when neither of its sides exceeds its bound and one meets it."""
    scale = min(shorter / min(size), longer / max(size))
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def objects(classes: Tensor, masks: Tensor, padded: Size, inner: Size, size: Size) -> list[Detection]:
    """Of one picture. classes: Q×(C+1) logits, of none last. masks: Q×h×w logits, of the padded picture.

    inner: the part of it that is no padding. size: the picture's own. Masks are scaled as logits, first to `padded`,
    then from `inner` to `size`; only of those whose class alone is likely enough, since a mask only takes from it.
    """
    number = classes.shape[1] - 1
    likely, at = classes.softmax(-1)[:, :-1].flatten().topk(min(MOST, len(classes) * number))
    likely, at = likely[likely > THRESHOLD], at[likely > THRESHOLD]
    if not len(at):
        return []
    logits = _resized(_resized(masks[at // number], padded)[:, : inner[1], : inner[0]], size)
    inside = logits > 0
    shares = (logits.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
    scores, labels, found = (likely * shares).tolist(), (at % number).tolist(), inside.cpu().numpy()
    return [
        Detection(CLASSES[label], _box(mask), score, mask)
        for label, mask, score in zip(labels, found, scores, strict=True)
        if score > THRESHOLD
    ]


def _resized(masks: Tensor, size: Size) -> Tensor:
    """Bilinear, N×h×w → N×height×width."""
    return interpolate(masks[:, None], (size[1], size[0]), mode="bilinear", align_corners=False)[:, 0]


def _box(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """The smallest that holds all of a mask, which is not empty: an empty one scores 0."""
    x, y = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return float(x[0]), float(y[0]), float(x[-1] + 1), float(y[-1] + 1)


# --- loading ----------------------------------------------------------------------------------------------------------

_BACKBONE = "model.pixel_level_module.encoder."
# What transformers 5 calls the backbone's tensors, by what the published files call them.
_RENAMED = (
    (r"^(embeddings|encoder)\.", r"swin.\1."),
    (r"attention\.self\.(query|key|value)\.", lambda match: f"attention.{match[1][0]}_proj."),
    (r"attention\.self\.relative", "attention.relative_position_bias.relative"),
    (r"attention\.output\.dense\.", "attention.o_proj."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"output\.dense\.", "mlp.fc2."),
)
# Of the loss, computed from the window's size, or never read.
_UNUSED = ("criterion.empty_weight", "relative_position_index", "swin.layernorm.weight", "swin.layernorm.bias")
_BACKBONE_KEYS = ("backbone", "backbone_kwargs", "use_timm_backbone", "use_pretrained_backbone")


def load_segmenter(folder: ModelFolder) -> Any:
    """Mask2Former from its published folder, in float32 on the CPU. Raises BadModel."""
    config = folder.config("detector", at="")
    backbone, labels, where = config.get("backbone_config"), config.get("id2label"), str(folder.path / "config.json")
    if not isinstance(backbone, dict) or backbone.get("model_type") != "swin":
        raise BadModel("its backbone is not described as a Swin transformer", where, f"use {DETECTOR}")
    if not isinstance(labels, dict) or len(labels) != len(CLASSES):
        raise BadModel(f"it does not tell COCO's {len(CLASSES)} classes apart (id2label)", where, f"use {DETECTOR}")
    own = {key: value for key, value in config.items() if key not in _BACKBONE_KEYS}  # names of other repositories
    blank = blank_transformers(Segmenter, Mask2FormerConfig, own, folder.path)
    blank.model.pixel_level_module.encoder.swin.layernorm = nn.Identity()  # after the last stage, which nothing reads
    stored = read_component(folder, "detector", None, at="")
    tensors = {current_name(name): tensor for name, tensor in stored.items() if not name.endswith(_UNUSED)}
    return fill_transformers(blank, tensors, folder.path, torch.float32)


def current_name(name: str) -> str:
    """What transformers 5 calls a tensor of the published checkpoint."""
    if not name.startswith(_BACKBONE):
        return name
    inner = name.removeprefix(_BACKBONE)
    for published, current in _RENAMED:
        inner = re.sub(published, current, inner)
    return _BACKBONE + inner
