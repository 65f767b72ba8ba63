"""Bad input through the real command line: what, where and the mend in one to three lines, nothing half-written.

Each case says which words must be in the message, so that none is refused for another reason.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import resource
import shlex
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin

from tests.reference import png
from unipic import cli
from unipic.models.find import find_model

LONG = "x" * 300  # longer than any file system's names

Refused = Callable[..., None]


def encoded(format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save(buffer, format, **options)
    return buffer.getvalue()


def animated(format: str) -> bytes:
    return encoded(format, save_all=True, append_images=[Image.new("RGB", (64, 64), c) for c in ("red", "blue")])


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def oversized_jpeg() -> bytes:
    """Its header claims 65,535² pixels."""
    data = encoded("JPEG")
    size = data.index(b"\xff\xc0") + 5
    return data[:size] + b"\xff" * 4 + data[size + 4 :]


def fits() -> bytes:
    cards = {"SIMPLE": "T", "BITPIX": 8, "NAXIS": 2, "NAXIS1": 64, "NAXIS2": 64}
    header = "".join(f"{f'{key:8}= {value:>20}':80}" for key, value in cards.items()) + "END"
    return f"{header:2880}".encode() + bytes(2 * 2880)


def with_settings(text: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("unipic", text)
    return encoded("PNG", pnginfo=info)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a few files; no GPU, no network, nothing in the hub's cache."""
    work = tmp_path / "work"
    (work / "folder.png").mkdir(parents=True)
    (work / "empty").mkdir()
    (work / "notes.txt").write_text("notes")
    (work / "notes.safetensors").write_text("notes")
    for name in ("picture.png", "before.preview.png", "set-2.png"):
        (work / name).write_bytes(encoded("PNG"))
    Image.new("RGB", (10_000, 8)).save(work / "long.png")
    (work / "ours.png").write_bytes(with_settings('{"task": "generate"}'))
    (work / "link.png").symlink_to("picture.png")
    os.mkfifo(work / "pipe.png")
    monkeypatch.chdir(work)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    at_termination = signal.getsignal(signal.SIGTERM)
    yield work
    signal.signal(signal.SIGTERM, at_termination)  # what `cli.main` sets for its whole process
    logging.disable(logging.NOTSET)


def contents() -> dict[str, str | None]:
    """Every path below the working folder, and the hashes of its files."""
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else None for p in Path().rglob("*")}


def check_refusal(code: object, stdout: str, stderr: str, words: tuple[str, ...], wanted: int) -> None:
    assert code == wanted, stderr
    lines = stderr.splitlines()
    assert 1 <= len(lines) <= 3, stderr
    assert all(line.strip() and line.isprintable() and len(line) < 250 for line in lines), stderr
    assert "Traceback" not in stderr
    assert "--debug" not in stderr, "a failure that nobody foresaw"
    for word in words:
        assert word in stderr
    assert stdout == ""


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Refused:
    """Run a command line; check that it is refused with these words and leaves the working folder as it was."""

    def run(arguments: list[str], *words: str, code: int = 2) -> None:
        before = contents()
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        check_refusal(end.value.code, *capfd.readouterr(), words, code)
        assert contents() == before

    return run


def accepted(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command line that must succeed; what it printed."""
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    stdout, stderr = capfd.readouterr()
    assert end.value.code == 0, stderr
    return stdout


# Pictures

UNKNOWN = "not a PNG, JPEG or WebP picture"
BAD_PICTURES = {
    "empty.png": (b"", "is empty"),
    "half.png": (half(encoded("PNG")), "is broken"),
    "half.jpg": (half(encoded("JPEG", quality=100)), "is broken"),
    "half.webp": (half(encoded("WEBP")), "is broken"),
    "stub.png": (encoded("PNG")[:20], "is broken"),
    "bomb.png": (png.black(30_000, 30_000), "too large"),
    "bomb.jpg": (oversized_jpeg(), "too large"),
    "ztxt-bomb.png": (png.with_zipped_text(10**8), "is broken"),
    "dot.png": (png.black(1, 1), "too small: 1x1"),
    "line.png": (png.black(10_000, 1), "too small: 10000x1"),
    "animation.png": (png.animation(10_000), "animation of 10000 frames"),
    "animation.webp": (animated("WEBP"), "animation of 3 frames"),
    "animation.gif": (animated("GIF"), UNKNOWN),
    "still.gif": (encoded("GIF"), UNKNOWN),
    "scan.tiff": (encoded("TIFF"), UNKNOWN),
    "scan.bmp": (encoded("BMP"), UNKNOWN),
    "drawing.eps": (encoded("EPS"), UNKNOWN),
    "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>', UNKNOWN),
    "layers.psd": (struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, 64, 64, 8, 3) + bytes(14 + 3 * 64 * 64), UNKNOWN),
    "stars.fits": (fits(), UNKNOWN),
    "page.png": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", UNKNOWN),
    "text.jpg": (b"Dear diary, this is no photograph.\n", UNKNOWN),
    "eps.png": (encoded("EPS"), UNKNOWN),
}


@pytest.mark.parametrize("command", ["edit", "describe"])
@pytest.mark.parametrize("name", BAD_PICTURES)
def test_bad_picture(command: str, name: str, refused: Refused) -> None:
    content, says = BAD_PICTURES[name]
    Path(name).write_bytes(content)
    refused([command, name, "what is red"], says, name)


# Command lines. The keys are typed in the working folder above; the values are words of the message.

NO_PICTURE = "there is no such picture"
NOT_OURS = "a file that unipic did not make stands there"
ITSELF = "would replace its own source"
BAD_COMMANDS: dict[str, tuple[str, ...]] = {
    # usage
    "paint": ("No such command 'paint'", "unipic --help"),
    "generat a": ("Did you mean 'generate'?",),
    "--verbose": ("No such option: --verbose",),
    "generate": ("Missing argument 'prompt'",),
    "generate a --stesp 3": ("No such option: --stesp", "--steps"),
    "generate a red ball": ("unexpected extra argument", "red ball"),
    "generate a --steps": ("'--steps' requires an argument",),
    "edit picture.png": ("Missing argument 'instruction'",),
    "describe": ("Missing argument 'image'",),
    # pictures that cannot be opened
    "edit missing.png a": (NO_PICTURE, "missing.png"),
    "edit notes.txt/picture.png a": (NO_PICTURE, "notes.txt/picture.png"),
    "edit folder.png a": ("a folder stands where a picture is needed", "folder.png"),
    "edit picture.png a --reference missing.png": (NO_PICTURE, "missing.png"),
    "edit picture.png a --reference notes.txt": (UNKNOWN, "notes.txt"),
    "edit long.png a": ("too elongated", "10000x8", "crop it"),
    "describe missing.png": (NO_PICTURE, "missing.png"),
    "describe folder.png": ("a folder stands where a picture is needed", "folder.png"),
    "describe long.png": ("too elongated", "10000x8", "crop it"),
    "info missing.png": (NO_PICTURE, "missing.png"),
    "info picture.png": ("carries no settings", "picture.png"),
    # sizes
    "generate a --width 0": ("the width is 0", "'tiny'", "nearest valid width is 16"),
    "generate a --width -64": ("the width is -64", "nearest valid width is 16"),
    "generate a --width 99999": ("the width is 99999", "nearest valid width is 256"),
    "generate a --width 70": ("the width is 70", "multiple of 16", "nearest valid width is 64"),
    "generate a --height 75": ("the height is 75", "multiple of 16", "nearest valid height is 80"),
    "generate a --height 64.5": ("'--height'", "valid integer"),
    "generate a --width NaN": ("'--width'", "valid integer"),
    "edit picture.png a --width 65": ("the width is 65", "nearest valid width is 64"),
    "edit picture.png a --image-size 0": ("the image size is 0", "nearest valid image size is 32"),
    "edit picture.png a --image-size 80": ("the image size is 80", "multiple of 32", "nearest valid image size is 64"),
    "edit picture.png a --image-size 99999": ("the image size is 99999", "nearest valid image size is 256"),
    # numbers
    "generate a --steps 0": ("steps", "got 0", "from 1 to 1000"),
    "generate a --steps -1": ("steps", "got -1", "from 1 to 1000"),
    "generate a --steps 1000000": ("steps", "got 1000000", "from 1 to 1000"),
    "generate a --steps 1.5": ("'--steps'", "valid integer"),
    "generate a --guidance-scale nan": ("guidance scale", "got nan", "from 0 to 100"),
    "generate a --guidance-scale inf": ("guidance scale", "got inf", "from 0 to 100"),
    "generate a --guidance-scale -1": ("guidance scale", "got -1", "from 0 to 100"),
    "generate a --guidance-scale 1e9": ("guidance scale", "got 1000000000", "from 0 to 100"),
    "generate a --guidance-scale strong": ("'--guidance-scale'", "valid number"),
    "generate a --guidance-interval 0.9 0.1": ("guidance interval", "got 0.1", "from 0.9 to 1"),
    "generate a --guidance-interval -0.1 1": ("guidance interval", "got -0.1", "from 0 to 1"),
    "generate a --guidance-interval 0 1.5": ("guidance interval", "got 1.5", "from 0 to 1"),
    "generate a --guidance-interval nan 1": ("guidance interval", "got nan", "from 0 to 1"),
    "generate a --guidance-interval 0.5": ("'--guidance-interval' requires 2 arguments",),
    "generate a --skip-layers first": ("skipped layers", "--skip-layers first", "7,8,9"),
    "generate a --skip-layers 0,,1": ("skipped layers", "--skip-layers 0,,1", "7,8,9"),
    "generate a --skip-layers 7,8,9": ("skipped layer", "got 7", "from 0 to 5"),
    "generate a --skip-layers -1": ("skipped layer", "got -1", "from 0 to 5"),
    "generate a --skip-layers 1 --skip-layer-scale nan": ("skip-layer guidance scale", "got nan"),
    "generate a --seed 18446744073709551616": ("seed", "got 18446744073709551616", "to 18446744073709551615"),
    "generate a --seed -1": ("seed", "got -1", "from 0"),
    "generate a --seed 1.5": ("'--seed'", "valid integer"),
    "generate a --seed lucky": ("'--seed'", "valid integer"),
    "generate a --seed 18446744073709551615 --num-images 2": ("seed", "to 18446744073709551614"),
    "generate a --num-images 0": ("number of pictures", "got 0", "from 1 to 256"),
    "generate a --num-images -1": ("number of pictures", "got -1", "from 1 to 256"),
    "generate a --num-images 1000000000": ("number of pictures", "got 1000000000", "from 1 to 256"),
    "generate a --preview-every -1": ("preview interval", "got -1", "from 0 to 1000"),
    "describe picture.png --max-new-tokens 0": ("number of new tokens", "got 0", "from 1"),
    "describe picture.png --max-new-tokens 1000000000": ("number of new tokens", "got 1000000000"),
    # texts
    "generate ''": ("the prompt is empty", "got ''"),
    "generate '   '": ("the prompt is empty",),
    "edit picture.png ''": ("the prompt is empty",),
    "describe picture.png ' '": ("the question is empty",),
    # placement
    "generate a --device foo": ("unknown device 'foo'", "--device", "auto, cpu, cuda or mps"),
    "generate a --device meta": ("unknown device 'meta'", "--device"),
    "generate a --device cuda": ("has no cuda", "--device cpu"),
    "generate a --device cuda:9": ("has no cuda:9", "--device cpu"),
    "generate a --device cuda:-1": ("unknown device 'cuda:-1'",),
    "describe picture.png --device foo": ("unknown device 'foo'", "--device"),
    "generate a --dtype foo": ("unknown dtype 'foo'", "--dtype", "fp32, bf16, fp16"),
    "generate a --offload foo": ("unknown offload 'foo'", "--offload", "none, model, group"),
    "generate a --quantize foo": ("unknown quantization 'foo'", "--quantize", "none, fp8, int8"),
    # models
    "generate a --model nowhere": ("there is no such model", "nowhere", "give tiny"),
    "generate a --model tinny": ("did you mean 'tiny'?", "tinny"),
    "generate a --model ./tiny-context": ("did you mean 'tiny-kontext'?",),
    "generate a --model notes.txt": ("a file stands where a model's folder is needed", "notes.txt"),
    "generate a --model nobody/nothing": ("could not be downloaded", "hf download nobody/nothing"),
    "generate a --model ~nobody-of-that-name/model": ("~nobody-of-that-name/model", "give tiny"),
    "generate a --mllm nowhere": ("there is no such model", "nowhere"),
    "generate a --mllm notes.txt": ("a file stands where a model's folder is needed", "notes.txt"),
    "generate a --mllm nobody/nothing": ("could not be downloaded", "hf download nobody/nothing"),
    "info tinny": ("did you mean 'tiny'?", "tinny"),
    "describe picture.png --model tiny-kontext": ("'tiny-kontext' has no multimodal language model", "--mllm"),
    "generate a --lora missing.safetensors": ("there is no adapter", "missing.safetensors", ".safetensors file"),
    "generate a --lora notes.txt": ("there is no adapter", "notes.txt", ".safetensors file"),
    "generate a --lora empty": ("there is no adapter", "adapter_model.safetensors"),
    # outputs
    "generate a --output a.jpg": ("written as PNG", "--output a.jpg", "ends in .png"),
    "generate a --output ''": ("written as PNG", "ends in .png"),
    "generate a --output folder.png": ("a folder stands", "folder.png"),
    "generate a --output notes.txt/a.png": ("nothing can be written there", "notes.txt", "--output"),
    "generate a --output picture.png": (NOT_OURS, "picture.png", "--output"),
    "generate a --output link.png": (NOT_OURS, "link.png"),
    "generate a --output set.png --num-images 3": (NOT_OURS, "set-2.png"),
    "generate a --output before.png --preview-every 1": (NOT_OURS, "before.preview.png"),
    "edit picture.png a --output picture.png": (ITSELF, "picture.png", "--output"),
    "edit ours.png a --output empty/../ours.png": (ITSELF, "ours.png"),
    "edit picture.png a --output link.png": (ITSELF, "link.png"),
    "edit picture.png a --reference ours.png --output ours.png": (ITSELF, "ours.png"),
    "edit before.preview.png a --output before.png --preview-every 1": (ITSELF, "before.preview.png"),
}
BROKEN_MODELS: dict[str, tuple[str, ...]] = {
    "generate a --model empty": ("neither a Kontext nor a MetaQuery model", "empty", "it needs transformer/"),
    "generate a --mllm empty": ("the model is incomplete", "empty/config.json", "again"),
    "generate a --lora notes.safetensors": ("the file is truncated", "notes.safetensors", "again"),
    "info empty": ("neither a Kontext nor a MetaQuery model", "empty"),
}


@pytest.mark.parametrize("line", BAD_COMMANDS)
def test_bad_command(line: str, refused: Refused) -> None:
    refused(shlex.split(line), *BAD_COMMANDS[line])


@pytest.mark.parametrize("line", BROKEN_MODELS)
def test_broken_model(line: str, refused: Refused) -> None:
    refused(shlex.split(line), *BROKEN_MODELS[line], code=1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["generate", "a" * 2**20], ("prompt is too long", "1,048,576", "16,384"), id="prompt of 1 MB"),
        pytest.param(["generate", "a\ud800"], ("not text", r"'\ud800' at position 1"), id="lone surrogate"),
        pytest.param(["generate", "a\0b"], ("not text", r"'\x00' at position 1"), id="NUL in the prompt"),
        pytest.param(["generate", "a", "--negative-prompt", "\0"], ("the negative prompt",), id="NUL in the negative"),
        pytest.param(["edit", "picture.png", "\udcff"], ("not text", r"'\udcff'"), id="surrogate in an instruction"),
        pytest.param(["describe", "picture.png", "\0"], ("the question", r"'\x00'"), id="NUL in a question"),
        pytest.param(["generate", "a", "--width", "9" * 5000], ("'--width'",), id="width of 5000 digits"),
        pytest.param(["edit", LONG, "a"], ("no path of a picture", "xxx"), id="picture with a long name"),
        pytest.param(["edit", "a\0.png", "a"], ("no such picture", r"a\x00.png"), id="picture with NUL in its name"),
        pytest.param(["edit", "\x1b[2J.png", "a"], (r"\x1b[2J.png",), id="picture with escape codes in its name"),
        pytest.param(["edit", LONG, "a", "--output", "ours.png"], ("no path of a picture",), id="before the output"),
        pytest.param(["info", f"{LONG}.png"], ("no path of a picture",), id="info of a long name"),
        pytest.param(["generate", "a", "--output", f"{LONG}.png"], ("no path to write to",), id="output, long name"),
        pytest.param(["generate", "a", "--output", "a\0.png"], ("'--output'", "null byte"), id="output, NUL"),
        pytest.param(["generate", "a", "--model", LONG], ("no model's name", "xxx"), id="model, long name"),
        pytest.param(["generate", "a", "--model", "a\0b"], ("no such model", r"a\x00b"), id="model, NUL"),
        pytest.param(["generate", "a", "--lora", LONG], ("there is no adapter", "xxx"), id="adapter, long name"),
        pytest.param(["generate", "a", "--lora", "a\0b"], ("there is no adapter", r"a\x00b"), id="adapter, NUL"),
    ],
)
def test_bad_text(arguments: list[str], words: tuple[str, ...], refused: Refused) -> None:
    refused(arguments, *words)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("line", ["edit pipe.png a", "describe pipe.png", "info pipe.png"])
def test_a_pipe_does_not_hang(line: str, refused: Refused) -> None:
    refused(shlex.split(line), "no regular file", "pipe.png", "PNG, JPEG or WebP")


@pytest.mark.timeout(60)
def test_a_pipe_is_not_replaced(refused: Refused) -> None:
    refused(["generate", "a", "--output", "pipe.png"], NOT_OURS, "pipe.png")


@pytest.mark.parametrize("settings", ["[" * 100_000, '{"prompt": "\\ud800"}'], ids=["nested", "surrogate"])
def test_forged_settings(settings: str, refused: Refused) -> None:
    Path("forged.png").write_bytes(with_settings(settings))
    refused(["info", "forged.png"], "no settings", "forged.png")
    refused(["generate", "a", "--output", "forged.png"], NOT_OURS, "forged.png")


def test_int8_without_torchao(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    refused(["generate", "a", "--quantize", "int8"], "torchao", "--quantize int8", "pip install 'unipic[quant]'")


def test_a_model_without_its_language_model(refused: Refused) -> None:
    shutil.copytree(find_model("tiny").root, "model", ignore=lambda *_: ["mllm"])
    refused(["generate", "a", "--model", "model"], "needs its multimodal language model", "model/mllm", "--mllm FOLDER")


def test_a_failing_write(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", fail)
    arguments = ["generate", "a", "--steps", "1", "--output", "new.png"]
    refused(arguments, "cannot be written", "new.png: Permission denied", "another place", code=1)


# A real process


def unipic(*arguments: str | bytes, **options: Any) -> subprocess.CompletedProcess[str]:
    settings = {"HF_HUB_OFFLINE": "1", "HF_HOME": "../hub", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "unipic.cli", *arguments]
    return subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=120, **options)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        pytest.param(["generate", "a", "--nope"], 2, ("No such option: --nope", "unipic --help"), id="unknown option"),
        pytest.param(["edit", "notes.txt", "a"], 2, (UNKNOWN, "notes.txt", "convert it"), id="no picture"),
        pytest.param(["edit", "pipe.png", "a"], 2, ("pipe.png", "no regular file"), id="pipe"),
        pytest.param(["edit", b"\xff\n.png", "a"], 2, (NO_PICTURE, r"\udcff"), id="path that is not UTF-8"),
        pytest.param(["generate", "a", "--output", "picture.png"], 2, (NOT_OURS, "--output"), id="not to be replaced"),
        pytest.param(["generate", b"caf\xe9"], 2, ("not text", r"'\udce9' at position 3"), id="prompt in Latin-1"),
        pytest.param(["generate", "a", "--width", "70"], 2, ("width is 70", "nearest valid width is 64"), id="width"),
        pytest.param(["generate", "a", "--model", "empty"], 1, ("neither a Kontext", "empty"), id="empty model"),
    ],
)
def test_real_process(arguments: list[str | bytes], code: int, words: tuple[str, ...]) -> None:
    before = contents()
    done = unipic(*arguments)
    check_refusal(done.returncode, done.stdout, done.stderr, words, code)
    assert contents() == before


@pytest.mark.parametrize("output", ["new.png", "ours.png"])
def test_real_process_with_a_full_disk(output: str) -> None:
    """It may not write files of more than 512 bytes, as if the disk were full halfway through the picture."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))

    before = contents()
    done = unipic("generate", "a", "--steps", "1", "--output", output, preexec_fn=limit)
    words = ("cannot be written", f"{output}: File too large", "another place")
    check_refusal(done.returncode, done.stdout, done.stderr, words, 1)
    assert contents() == before


# What looks bad and is taken as it is

LITERAL = {
    "html": "<script>alert(1)</script>",
    "python": "__import__('os')",
    "end of turn": "<|im_end|>",
    "end of text": "<|endoftext|>",
    "end of sentence": "</s>",
    "picture slot": "<|vision_start|><|image_pad|><|vision_end|>",
    "template": "{{ 7 * 7 }} ${HOME} %s {0}",
    "shell": "$(rm -rf .); `ls` | cat",
    "emoji": "🎈 a 👩‍👩‍👧 family",
    "right to left": "עיגול אדום \u202e دائرة",
    "two lines": "a red ball\non the left\tside",
    "option": "--help",
    "our own option": "--debug",
    "sixteen thousand letters": "a " * 8192,
}


@pytest.mark.parametrize("model", ["tiny", "tiny-kontext"])
@pytest.mark.parametrize("name", LITERAL)
def test_a_prompt_is_taken_literally(name: str, model: str, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--model", model, "--steps", "1", "--output", "new.png", f"--negative-prompt={LITERAL[name]}"]
    assert accepted(capfd, "generate", *options, "--", LITERAL[name]) == "new.png\n"
    settings = json.loads(accepted(capfd, "info", "new.png", "--json"))
    assert (settings["prompt"], settings["negative_prompt"]) == (LITERAL[name], LITERAL[name])


@pytest.mark.parametrize("name", ["html", "end of turn", "picture slot", "emoji"])
def test_instructions_and_questions_too(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    accepted(capfd, "edit", "--steps", "1", "--output", "new.png", "--", "picture.png", LITERAL[name])
    assert json.loads(accepted(capfd, "info", "new.png", "--json"))["prompt"] == LITERAL[name]
    answer = json.loads(accepted(capfd, "describe", "--json", "--", "picture.png", LITERAL[name]))
    assert answer["question"] == LITERAL[name]


def test_a_picture_of_ours_is_replaced(capfd: pytest.CaptureFixture[str]) -> None:
    accepted(capfd, "generate", "a", "--steps", "1", "--output", "ours.png")
    assert json.loads(accepted(capfd, "info", "ours.png", "--json"))["prompt"] == "a"


@pytest.mark.skipif(sys.platform != "linux", reason="names are UTF-8 there")
@pytest.mark.parametrize(
    "arguments",
    [["generate", "a", "--steps", "1", "--output", b"caf\xe9.png"], ["describe", b"ros\xe9.png", "--json"]],
    ids=["generate", "describe"],
)
def test_file_names_may_be_any_bytes(arguments: list[str | bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")  # as in any locale but C
    shutil.copyfile("picture.png", b"ros\xe9.png")
    done = unipic(*arguments, errors="surrogateescape")
    assert (done.returncode, done.stderr) == (0, "")
