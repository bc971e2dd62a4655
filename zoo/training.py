"""Train the shipped models again: into a temporary folder, then into place, with their checksums."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from phantomlib import files
from phantomlib.errors import ParameterError
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
            f"steps = {steps!r}: a training needs a whole number of steps, at least 1; "
            "leave it out for the recipe's own number."
        )
    folder = train_into(name, root, device, steps, progress)
    _record(root, name)
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


def _record(root: Path, name: str) -> None:
    """Enter the checksums of one model into `root`/checksums.json, safely beside other trainings."""
    target = root / "checksums.json"
    lock = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    with FileLock(Path(tempfile.gettempdir()) / f"phantom-zoo-{lock}.lock"):
        try:
            sums = files.read_json(target)
        except (FileNotFoundError, ValueError):  # the other models are then without a record, and `verify` says so
            sums = {}
        sums[name] = {file.name: files.file_digest(file) for file in sorted((root / name).iterdir())}
        files.write_json(target, dict(sorted(sums.items())))
