"""What a model's JSON says of the pictures it can make; no weights are read."""

from __future__ import annotations

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

    @cached_property
    def shift(self) -> float:
        """The schedule's shift; a schedule that we do not know is refused."""
        config = self.folder.config("scheduler")
        where = str(self.folder.root / "scheduler" / "scheduler_config.json")
        if asked := [k for k in _UNKNOWN_SCHEDULES if config.get(k)]:
            raise BadModel(f"the schedule asks for {', '.join(asked)}", where, "only a constant shift is known here")
        shift, timesteps = config.get("shift", 1.0), config.get("num_train_timesteps", flow.TRAIN_TIMESTEPS)
        if not isinstance(shift, int | float) or not shift > 0 or timesteps != flow.TRAIN_TIMESTEPS:
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
        blocks = self.folder.config("vae").get("block_out_channels", ())
        return int(2 ** max(len(blocks) - 1, 0))

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

    def check_request(self, request: Request) -> None:
        """Refuse a request that the model has no positions or layers for."""
        self.check_side("width", request.width, self.size_multiple)
        self.check_side("height", request.height, self.size_multiple)
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
