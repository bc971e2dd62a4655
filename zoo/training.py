"""Train the shipped models again: into a temporary folder, then into place, with their checksums."""

import hashlib
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from phantomlib import files
from phantomlib.errors import ParameterError, shown
from phantomlib.models.zoo_models import home
from zoo.recipe import RECIPES, pretrain


def train(
    name: str, out: Path | str | None = None, device: str = "cpu", steps: int | None = None, progress: bool = True
) -> Path:
    """Rebuild a model from its seed into `out`/name (default: where its shipped weights are); returns that folder.

    Its checksums are recorded in `out`/checksums.json, and its files are moved into place when complete. The same
    machine, device and number of threads give the same weights; another one gives them up to how rounding errors grow.
    `steps` shortens the training (for tests). Raises ModelError for an unknown name, ParameterError for `steps` < 1.
    """
    root = Path(out) if out else home(name)
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise ParameterError(
            f"steps is {shown(steps)}; give a whole number of at least 1, or none for the recipe's own."
        )
    folder = train_into(name, root, device, steps, progress)
    lock = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    with FileLock(Path(tempfile.gettempdir()) / f"phantom-zoo-{lock}.lock"):  # other trainings write beside this one
        try:
            sums = files.read_json(root / "checksums.json")
        except (FileNotFoundError, ValueError):  # the other models are then without a record, and `verify` says so
            sums = {}
        sums[name] = {file.name: files.file_digest(file) for file in sorted(folder.iterdir())}
        files.write_json(root / "checksums.json", dict(sorted(sums.items())))
    return folder


def train_into(name: str, root: Path, device: str = "cpu", steps: int | None = None, progress: bool = True) -> Path:
    """Train in a temporary folder, then move it to `root`/name: an interruption leaves the old model intact."""
    recipe = RECIPES[name] if steps is None else replace(RECIPES[name], steps=steps)
    root.mkdir(parents=True, exist_ok=True)
    final, temporary, old = root / name, root / f".{name}.{os.getpid()}", root / f".{name}.{os.getpid()}.old"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        pretrain(recipe, temporary, device, progress)
        if final.exists():
            os.replace(final, old)
        os.replace(temporary, final)
    finally:
        if old.exists() and not final.exists():
            os.replace(old, final)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return final
