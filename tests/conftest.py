"""Settings for all tests: one thread, no network, no window."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import pytest
import torch
from hypothesis import settings
from opened import CHROMIUM

torch.set_num_threads(1)
settings.register_profile("project", deadline=None, print_blob=True)  # a busy machine must not fail a test
settings.load_profile("project")


def pytest_collection_modifyitems(items):
    """Slow tests first, so that none is left for one core when the other has nothing to do."""
    items.sort(key=lambda item: "slow" not in item.keywords)


@pytest.fixture(scope="module")
def browser():
    """Chromium; not for the whole session, since tests that run notebooks need the event loop that it occupies."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium; install the package 'chromium'")
    with playwright.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # tests may run as root
        yield chromium
        chromium.close()


TOY = """\
# %% [markdown]
# # A toy

# %% tags=["parameters"]
steps: int = 3  # how many
rates: list[float] = [0.1, 1.0]  # learning rates
label: str = "x"  # text

# %% [markdown]
# ## Working

# %%
if label == "purposely":
    from phantomlib.errors import ContextError
    raise ContextError("The word is two tokens. Choose another.")
print(steps, rates, label)

# %%
display(steps)

# %%
if label == "bug":
    1 / 0
if label == "exit":
    raise SystemExit
if label == "kill":
    import os
    os.kill(os.getpid(), 9)
if label == "slow":
    import time
    time.sleep(60)
"""

AFTER = """\
# ---
# jupyter:
#   phantom:
#     after: all
# ---

# %% [markdown]
# # What comes after

# %%
print("second")
"""


@pytest.fixture
def toy_book(tmp_path):
    """The root of a book with two notebooks that need no model."""
    for name, text in {
        "_toc.yml": "format: jb-book\nroot: book/intro\nchapters:\n"
        "  - file: book/generated/01_toy\n  - file: book/generated/02_after\n",
        "_config.yml": 'title: Toy\nexecute: {execute_notebooks: "off"}\nonly_build_toc_files: true\n',
        "book/intro.md": "# Toy\n",
        "notebooks/01_toy.py": TOY,
        "notebooks/02_after.py": AFTER,
        "notebooks/profiles/zoo.yaml": 'common: {}\n"01":\n  steps: 5\n  rates: [1e-3]\n',
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path
