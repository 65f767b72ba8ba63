"""What a model's JSON says of the pictures it can make; no weights are read."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

from unipic import flow
from unipic.errors import BadInput, BadModel
from unipic.models.folder import ModelFolder
from unipic.types import Request, check_whole

_UNKNOWN_SCHEDULES = (
    "use_dynamic_shifting",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "shift_terminal",
    "stochastic_sampling",
)


class ModelSpec:
    """Sizes and schedule of a model."""

    def __init__(self, folder: ModelFolder) -> None:
        self.folder = folder

    def check_schedule(self) -> None:
        """Raise BadModel for a schedule that we do not know."""
        _ = self.shift

    @cached_property
    def shift(self) -> float:
        """The schedule's shift; a schedule that we do not know is refused."""
        config = self.folder.config("scheduler")
        where = str(self.folder.root / "scheduler" / "scheduler_config.json")
        if asked := [k for k in _UNKNOWN_SCHEDULES if config.get(k)]:
            raise BadModel(f"the schedule asks for {', '.join(asked)}", where, "only a constant shift is known here")
        shift, timesteps = config.get("shift", 1.0), config.get("num_train_timesteps", flow.TRAIN_TIMESTEPS)
        if not isinstance(shift, int | float) or not 0 < shift < math.inf or timesteps != flow.TRAIN_TIMESTEPS:
            raise BadModel(f"no schedule has shift {shift!r} and {timesteps!r} timesteps", where, "correct it")
        return float(shift)

    @cached_property
    def latent_channels(self) -> int:
        return self._whole("transformer", "in_channels", 16)

    @cached_property
    def layers(self) -> int:
        return self._whole("transformer", "num_layers", 18)

    @cached_property
    def vae_factor(self) -> int:
        """Pixels along one side of a latent."""
        blocks = self.folder.config("vae").get("block_out_channels", [64])
        if not isinstance(blocks, list) or not 1 <= len(blocks) <= 8:
            where = str(self.folder.root / "vae" / "config.json")
            raise BadModel(f"block_out_channels is {blocks!r}, no list of widths", where, "download it again")
        return int(2 ** (len(blocks) - 1))

    @cached_property
    def size_multiple(self) -> int:
        """Pixels along one side of an image token."""
        return self.vae_factor * self._whole("transformer", "patch_size", 2)

    @cached_property
    def largest_side(self) -> int:
        """The positions that the transformer knows, in pixels."""
        return self.size_multiple * self._whole("transformer", "pos_embed_max_size", 96)

    def _whole(self, component: str, key: str, default: int) -> int:
        value = self.folder.config(component).get(key, default)
        if type(value) is not int or not 0 < value <= 100_000:
            where = str(self.folder.root / component / "config.json")
            raise BadModel(
                f"{key} is {value!r}, not a sensible whole number", where, "download or save the model again"
            )
        return value

    def check_parts(self) -> None:
        """Raise BadModel, naming both, for parts that do not belong together."""
        whole = self._whole
        self._same("vae", "latent_channels", whole("vae", "latent_channels", 4), "in_channels", 16)
        if self.folder.kind == "metaquery":
            for key, default in (("joint_attention_dim", 4096), ("pooled_projection_dim", 2048)):
                self._same("conditioner", key, whole("conditioner", key, default), key, default)
        else:
            pooled = sum(whole(f"text_encoder{n}", "projection_dim", 512) for n in ("", "_2"))
            self._same(
                "text_encoder", "projection_dim, with that of text_encoder_2,", pooled, "pooled_projection_dim", 2048
            )
            self._same(
                "text_encoder_3", "d_model", whole("text_encoder_3", "d_model", 512), "joint_attention_dim", 4096
            )

    def _same(self, part: str, key: str, value: int, theirs: str, default: int) -> None:
        if value != (wanted := self._whole("transformer", theirs, default)):
            where = str(self.folder.root / part / "config.json")
            what = f"{key} is {value}, but the transformer's {theirs} is {wanted}"
            raise BadModel(what, where, "these parts are not of one model")

    def check_request(self, request: Request) -> None:
        """Refuse a request that the model has no positions or layers for."""
        self.check_side("width", request.width, self.size_multiple)
        self.check_side("height", request.height, self.size_multiple)
        for picture in request.references:
            if picture.mode != "RGB":
                raise BadInput(f"a reference is {picture.mode}, not RGB", f"{picture.size}", "load it by pictures.load")
            self.check_side("width of a reference", picture.width, self.size_multiple)
            self.check_side("height of a reference", picture.height, self.size_multiple)
        if self.folder.kind == "kontext" and request.reference_to == "mllm":
            raise BadInput("Kontext has no language model to show a picture to", "reference_to: mllm", "give both")
        for layer in request.skip_layers.layers if request.skip_layers else ():
            check_whole("skipped layer", layer, 0, self.layers - 1)

    def check_side(self, name: str, value: Any, multiple: int) -> None:
        """A whole multiple, within the positions that the transformer knows; else name the nearest that is."""
        low, high = multiple, self.largest_side // multiple * multiple
        if type(value) is int and low <= value <= high and value % multiple == 0:
            return
        number = value if isinstance(value, int | float) and value == value else low
        nearest = round(max(low, min(number, high)) / multiple) * multiple
        raise BadInput(
            f"the {name} is {value!r}, which is not a multiple of {multiple} from {low} to {high}",
            f"the model {self.folder.name!r}",
            f"the nearest valid {name} is {nearest}",
        )
