"""The parts of one model, each loaded when a job first needs it and placed as asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

from PIL.Image import Image

from unipic.errors import BadInput
from unipic.models.folder import ModelFolder
from unipic.models.kontext import KontextTransformer, load_transformer
from unipic.models.lora import lora_hash, merge_lora
from unipic.models.metaquery import Conditioner, MetaQuery, load_conditioner
from unipic.models.mllm import MLLM, load_mllm
from unipic.models.placement import Part, Placement
from unipic.models.spec import ModelSpec
from unipic.models.text import TextEncoders, load_text_encoders
from unipic.models.vae import VAE, load_vae
from unipic.types import Condition

Encode = Callable[[Sequence[str], Sequence[Image]], Condition]
"""(texts, references) → a condition for each text"""


class Parts:
    """A model folder, opened; nothing of its weights is read before a part is used."""

    def __init__(
        self, folder: ModelFolder, mllm_folder: ModelFolder | None, placement: Placement, lora: str | None = None
    ) -> None:
        self.folder, self.mllm_folder, self.placement, self.lora = folder, mllm_folder, placement, lora
        self.spec = ModelSpec(folder)
        dtype = placement.dtype
        self.transformer: Part[KontextTransformer] = Part(
            self._load_transformer, lambda part: [part], placement, quantize=True
        )
        self.vae: Part[VAE] = Part(lambda: VAE(load_vae(folder, dtype)), lambda part: [part.module], placement)
        self.text: Part[TextEncoders] = Part(lambda: load_text_encoders(folder, dtype), TextEncoders.modules, placement)
        self.mllm: Part[MLLM] = Part(self._load_mllm, lambda part: [part.model], placement, quantize=True)
        self.conditioner: Part[Conditioner] = Part(
            lambda: load_conditioner(folder, dtype), lambda part: [part], placement
        )

    @contextmanager
    def encoder(self) -> Iterator[Encode]:
        """What turns texts into conditions in this model: CLIP and T5, or the language model and its queries."""
        if self.folder.kind == "metaquery":
            with self.mllm.use(release=True) as mllm, self.conditioner.use(release=True) as conditioner:
                yield MetaQuery(mllm, conditioner).encode
        else:
            with self.text.use(
                release=True
            ) as encoders:  # one text at a time, as published: the same bits in any company
                yield lambda texts, _: Condition.cat([encoders.encode([text]) for text in texts])

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 over all weights that make pictures."""
        return self.folder.weights_hash(self.mllm_folder if self.folder.kind == "metaquery" else None)

    @cached_property
    def lora_hash(self) -> str | None:
        """SHA-256 of the adapter's file, if there is one."""
        return None if self.lora is None else lora_hash(self.lora)

    def _load_transformer(self) -> KontextTransformer:
        transformer = load_transformer(self.folder, self.placement.dtype)
        if self.lora is not None:
            merge_lora(transformer, self.lora)
        return transformer

    def _load_mllm(self) -> MLLM:
        if self.mllm_folder is None:
            raise BadInput(
                f"the model {self.folder.name!r} has no multimodal language model to describe with",
                "a Kontext model only generates and edits",
                "use a MetaQuery model, or give --mllm",
            )
        return load_mllm(self.mllm_folder, self.placement.dtype, self.placement.device)
