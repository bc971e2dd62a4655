"""A copy of the packages, whose code may be changed without being run."""

import shutil

import pytest

from phantombook import stale


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder with copies of the packages that may be changed."""
    for name in stale.PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__", "weights")
        shutil.copytree(stale.HOME / name, tmp_path / name, ignore=ignored)
    (tmp_path / "phantomlib/models/weights").mkdir()
    (tmp_path / "phantomlib/models/weights/checksums.json").write_text("{}")
    monkeypatch.setattr(stale, "HOME", tmp_path)
    return tmp_path
