"""Tokenizers of published folders, made from their vocabulary files alone.

The libraries' own loaders follow names of further files, and arguments, in tokenizer_config.json; here only its special
tokens and its length are taken.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from unipic.errors import BadModel
from unipic.models.folder import ModelFolder

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
UNLIMITED = int(1e30)  # what tokenizers without a length are given, as in transformers


def load_tokenizer(folder: ModelFolder, at: str, cls: type[Any]) -> Any:
    """The tokenizer in the subfolder `at`: its tokenizer.json, else vocab.json and merges.txt through `cls`."""
    where = folder.check_subfolder(at)
    prefix = f"{at}/" if at else ""
    config = folder.json(f"{prefix}tokenizer_config.json")
    length = config.get("model_max_length", UNLIMITED)
    if type(length) not in (int, float) or not length >= 1:
        name = str(where / "tokenizer_config.json")
        raise BadModel(f"model_max_length is {length!r}, not a length", name, "download or save the model again")
    try:
        return _make(folder, prefix, cls, config, int(min(length, UNLIMITED)))
    except BadModel:
        raise
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # the library raises anything for broken files, also its Rust's panics
        raise BadModel(f"the tokenizer cannot be read: {error}", str(where), "download or save it again") from error


def _make(folder: ModelFolder, prefix: str, cls: type[Any], config: dict[str, Any], length: int) -> Any:
    named = folder.json(f"{prefix}special_tokens_map.json") if folder.has(f"{prefix}special_tokens_map.json") else {}
    tokens = {key: _text(config.get(key) or named.get(key)) for key in _NAMED if config.get(key) or named.get(key)}
    if folder.has(f"{prefix}tokenizer.json"):
        folder.json(f"{prefix}tokenizer.json")
        backend = Tokenizer.from_file(str(folder.file(f"{prefix}tokenizer.json")))
        return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=length, **tokens)
    vocab = folder.json(f"{prefix}vocab.json")
    lines = folder.file(f"{prefix}merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    tokenizer = cls(vocab=vocab, merges=merges, model_max_length=length, **tokens)
    added = config.get("added_tokens_decoder", {})
    tokenizer.add_tokens([_text(added[key]) for key in sorted(added, key=int)], special_tokens=True)
    return tokenizer


def _text(token: Any) -> str:
    """A token as JSON writes it: its text, or an object with its `content`."""
    return str(token["content"] if isinstance(token, dict) else token)


def check_ids(tokenizer: Any, rows: int, where: str) -> None:
    """Refuse a tokenizer with ids that the model has no embeddings for."""
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= rows:
        what = f"the tokenizer has ids up to {largest}, the model embeds {rows}"
        raise BadModel(what, where, "tokenizer and model do not belong together")


def special_texts(tokenizer: Any) -> list[str]:
    """The special tokens, as a user might write them."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
