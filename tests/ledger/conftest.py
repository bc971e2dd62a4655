"""A copy of the package, whose code may be changed without being run."""

import shutil

import pytest

from phantomlib.ledger import sources


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package that may be changed."""
    copy = tmp_path / "phantomlib"
    shutil.copytree(sources.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    (copy / "zoo/weights").mkdir()
    (copy / "zoo/weights/checksums.json").write_text("{}")
    monkeypatch.setattr(sources, "PACKAGE", copy)
    return copy
