"""The rules of the house, read from the source: imports go down, and what is banned stays out."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "unipic"
FILES = sorted(PACKAGE.rglob("*.py"))
# From the bottom up; a module may import from its own floor and from those below.
FLOORS = [
    {"errors", "files"},
    {"types", "pictures", "flow", "config"},
    {"world"},
    {"models", "sampling"},
    {"parts", "settings"},
    {"pipeline"},
    {"system", "rewards", "data", "report"},
    {"evals"},
    {"train", "serve"},
    {"cli"},
]
# On one floor, these ignore one another.
STRANGERS = [("models", "sampling"), ("train", "serve"), ("flow", "pictures")]


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def floor(name: str) -> int:
    return next(i for i, names in enumerate(FLOORS) if name in names)


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, at its top or within a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "unipic" else {node.module}
            )
    return {name for name in found if name.startswith("unipic.")} - {"unipic.__version__"}


@pytest.mark.parametrize("path", [f for f in FILES if f != PACKAGE / "__init__.py"], ids=lambda p: p.stem)
def test_imports_go_down(path: Path) -> None:
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imported(path):
        there = room(module)
        if there == here:
            continue
        assert floor(there) <= floor(here), f"{here} imports {there}, a floor above it"
        assert (here, there) not in STRANGERS
        assert (there, here) not in STRANGERS


def test_a_planted_import_upwards_is_seen(tmp_path: Path) -> None:
    bad = tmp_path / "flow.py"
    bad.write_text("def f():\n    from unipic.models.kontext import KontextTransformer\n")
    assert [room(m) for m in imported(bad)] == ["models"]
    assert floor("models") > floor("flow")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_nothing_banned(path: Path) -> None:
    tree = ast.parse(path.read_text())
    modules = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    modules |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    banned = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torchvision", "torchaudio"}
    assert not modules & banned
    calls = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    assert not calls & {"torch.load", "torch.save", "eval", "exec", "pickle.load", "np.load", "numpy.load", "os.system"}
    keywords = {k.arg for n in ast.walk(tree) if isinstance(n, ast.Call) for k in n.keywords}
    assert "trust_remote_code" not in keywords


def test_the_word_trust_remote_code_stands_only_where_it_is_refused() -> None:
    users = {f.name for f in FILES if "trust_remote_code" in f.read_text()}
    assert users == {"folder.py"}


def test_nothing_pulls_in_torchvision_or_unpickling() -> None:
    """A whole run of the three jobs, in a process of its own."""
    code = """
import sys
from unipic import UniPic
system = UniPic.from_pretrained("tiny", device="cpu")
picture = system.generate("a ring", steps=1)[0]
system.edit(picture, "make it red", steps=1)
system.describe(picture, max_new_tokens=1)
assert "torchvision" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, time; t = time.time()\n"
        "from unipic.cli import main\n"
        "try: main(['generate', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'PIL', 'diffusers', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stdout=subprocess.DEVNULL)


def test_the_project_speaks_of_itself_alone() -> None:
    """No path of a machine, and no words that a reader of the project could not follow."""
    root = PACKAGE.parents[1]
    texts = [*FILES, *root.glob("*.md"), *(root / "docs").rglob("*.md"), root / "Makefile", *root.glob("tests/*.py")]
    stray = re.compile(r"/(home|root|Users)/\w|(?<![\w.])/work/")
    for path in texts:
        if path != Path(__file__):
            assert not stray.search(path.read_text()), path
