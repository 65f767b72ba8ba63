"""Configuration: a recipe in YAML ← `--set a.b=c` → one strict object, which is saved beside what it made.

The classes themselves stand beside the code that reads them; here is what they share.

    raw, where = read_recipe("tiny/kontext")
    config = resolve(KontextRun, raw, where, sets=["optimizer.lr=1e-4"])
    save(config, run_dir / "config.yaml")
"""

from unipic.config.recipe import apply_sets, read_recipe, recipes
from unipic.config.saved import check_same, difference, dump, save
from unipic.config.strict import Strict, resolve

__all__ = ["Strict", "apply_sets", "check_same", "difference", "dump", "read_recipe", "recipes", "resolve", "save"]
