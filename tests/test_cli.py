"""The command line as scripts use it, in processes of its own and in this one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from unipic import UniPic, pictures
from unipic.cli import main
from unipic.models.tiny import make_metaquery


def run(*arguments: str, expect: int = 0) -> None:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == expect


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_from_prompt_to_answer_in_real_processes() -> None:
    """generate, edit, describe, info: results on stdout, nothing else there."""

    def unipic(*arguments: str) -> str:
        command = [sys.executable, "-m", "unipic.cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert unipic("generate", "a red circle", "--seed", "3", "--output", "a.png") == "a.png\n"
    assert unipic("edit", "a.png", "make it blue", "--output", "b.png", "--steps", "2") == "b.png\n"
    assert len(unipic("describe", "b.png", "what is this", "--max-new-tokens", "4").strip()) > 0
    settings = json.loads(unipic("info", "b.png", "--json"))
    assert (settings["task"], settings["prompt"], settings["steps"]) == ("edit", "make it blue", 2)
    direct = UniPic.from_pretrained("tiny", device="cpu").generate("a red circle", seed=3)[0]
    assert Image.open("a.png").tobytes() == direct.tobytes()


def test_help_in_under_a_second() -> None:
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "unipic.cli", "--help"], check=True, stdout=subprocess.DEVNULL)
    assert time.monotonic() - start < 5  # 0.1 s on an idle machine; the imports are what test_architecture holds


def test_settings_make_the_picture_again(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--width", "96", "--height", "32", "--steps", "3", "--guidance-scale", "2.5", "--seed", "9"]
    run("generate", "two stars", "--negative-prompt", "black", *options, "--output", "first.png", "--json")
    (row,) = json.loads(capsys.readouterr().out)
    settings = row["settings"]
    assert settings == pictures.settings_of("first.png")
    again = UniPic.from_pretrained(settings["model"], device="cpu").generate(
        settings["prompt"],
        **{k: settings[k] for k in ("negative_prompt", "width", "height", "steps", "guidance_scale", "seed")},
    )
    assert pictures.png_bytes(again[0]) == Path("first.png").read_bytes()
    assert len(settings["weights"]) == 64


def test_several_pictures_are_numbered_and_take_the_place_of_their_previews(capsys: pytest.CaptureFixture[str]) -> None:
    run("generate", "a ring", "--num-images", "2", "--steps", "2", "--preview-every", "1", "--output", "deep/r.png")
    assert capsys.readouterr().out.split() == ["deep/r-1.png", "deep/r-2.png"]
    assert {p.name for p in Path("deep").iterdir()} == {"r-1.png", "r-2.png"}


def test_a_cut_prompt_is_told_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    run("generate", "a red circle " * 60, "--model", "tiny-kontext", "--steps", "1")
    assert capsys.readouterr().err.startswith("warning: only the first 48 tokens")


def test_own_pictures_are_replaced_and_others_never(capsys: pytest.CaptureFixture[str]) -> None:
    run("generate", "a ring", "--steps", "1", "--output", "mine.png")
    run("generate", "a star", "--steps", "1", "--output", "mine.png")
    assert pictures.settings_of("mine.png")["prompt"] == "a star"
    Image.new("RGB", (64, 64)).save("photo.png")
    before = Path("photo.png").read_bytes()
    run("generate", "a ring", "--output", "photo.png", expect=2)
    run("edit", "mine.png", "make it red", "--output", "mine.png", expect=2)
    assert Path("photo.png").read_bytes() == before
    assert pictures.settings_of("mine.png")["prompt"] == "a star"


def test_keep_size_and_references() -> None:
    Image.effect_noise((120, 90), 80).convert("RGB").save("in.png")
    run("edit", "in.png", "add a star", "--reference", "in.png", "--keep-size", "--steps", "1", "--output", "out.png")
    assert Image.open("out.png").size == (120, 90)
    assert len(pictures.settings_of("out.png")["references"]) == 2


def test_guidance_options_reach_the_sampler() -> None:
    base = ["generate", "a ring", "--steps", "4", "--output"]
    run(*base, "plain.png")
    run(*base, "interval.png", "--guidance-interval", "0.2", "0.6")
    run(*base, "skip.png", "--skip-layers", "1,2", "--skip-layer-scale", "1.5", "--skip-layer-stop", "0.9")
    assert len({Image.open(f"{n}.png").tobytes() for n in ("plain", "interval", "skip")}) == 3
    assert pictures.settings_of("interval.png")["guidance_interval"] == [0.2, 0.6]
    assert pictures.settings_of("skip.png")["skip_layers"]["layers"] == [1, 2]


def test_info_of_models(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run("info", "--json")
    report = json.loads(capsys.readouterr().out)
    assert report["complete"]
    assert report["kind"] == "metaquery"
    assert {row["component"] for row in report["components"]} == {
        "transformer",
        "vae",
        "scheduler",
        "conditioner",
        "mllm",
    }
    run("info", "tiny-kontext")
    assert "complete" in capsys.readouterr().out

    make_metaquery(tmp_path / "model")
    (tmp_path / "model" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    run("info", "model", expect=1)
    table = capsys.readouterr().out
    assert "INCOMPLETE" in table
    assert "vae/diffusion_pytorch_model.safetensors" in table


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_a_run_with_their_codes(sent: signal.Signals, code: int) -> None:
    """In the middle of sampling; what was written by then is whole."""
    options = ["--steps", "1000", "--preview-every", "1", "--output", "a.png"]
    command = [sys.executable, "-m", "unipic.cli", "generate", "a ring", *options]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # ignored behind nohup
    )
    while not Path("a.preview.png").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert [p.name for p in Path().iterdir()] == ["a.preview.png"]
    assert pictures.load("a.preview.png").size == (64, 64)


def test_no_arguments_are_a_call_for_help(capsys: pytest.CaptureFixture[str]) -> None:
    run()
    assert "Commands:" in capsys.readouterr().out
