"""One notebook: what is written, what is kept of one that failed, what counts for the ledger, and what is said."""

import importlib.metadata
import importlib.util
import json
import multiprocessing
import signal
import time
from types import SimpleNamespace

import pytest
from nbformat.v4 import new_code_cell, new_notebook

from phantombook import build, execution
from phantombook.execution import execute
from phantombook.plan import make_job
from phantombook.preloaded_kernel import NAME, PRELOAD, Kernel, Preloaded, start_server
from phantomlib.errors import BookError, ContextError


@pytest.fixture(autouse=True, scope="module")
def server():
    start_server()


def run(root, values, output, on_progress=lambda report: None):
    job = make_job(root, "01", values, output)
    execute(job, on_progress)
    return job.output


def test_a_run_gives_the_same_file_twice(toy_book):
    first = run(toy_book, {"steps": 4}, toy_book / "a/01.ipynb").read_bytes()
    reports = []
    second = run(toy_book, {"steps": 4}, toy_book / "b/01.ipynb", on_progress=reports.append).read_bytes()
    assert first == second
    content = json.loads(first)
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    tags = [cell["metadata"].get("tags", []) for cell in content["cells"]]
    assert ["hide-input", "injected-parameters"] in tags and ["hide-input", "parameters"] in tags
    assert [report["cell"] for report in reports] == list(range(1, reports[-1]["of"] + 1))
    assert reports[-1]["heading"] == "Working"


def test_a_failed_notebook_is_kept_and_named(toy_book):
    with pytest.raises(BookError, match="ZeroDivisionError: division by zero") as caught:
        run(toy_book, {"label": "bug"}, toy_book / "01_toy.ipynb")
    assert str(toy_book / "01_toy.failed.ipynb") in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert [path.name for path in toy_book.glob("*.ipynb")] == ["01_toy.failed.ipynb"]
    assert '"text/plain"' in (toy_book / "01_toy.failed.ipynb").read_text()  # what it did before it failed
    run(toy_book, {}, toy_book / "01_toy.ipynb")
    assert not (toy_book / "01_toy.failed.ipynb").exists()


def test_an_error_on_purpose_keeps_its_kind_and_leaves_nothing(toy_book):
    with pytest.raises(ContextError, match=r"^The word is two tokens. Choose another.$"):
        run(toy_book, {"label": "purposely"}, toy_book / "01_toy.ipynb")
    assert not list(toy_book.glob("*.ipynb"))


def test_a_cell_that_ends_early_is_a_failure(toy_book):
    with pytest.raises(BookError, match="cell 6 raised SystemExit"):
        run(toy_book, {"label": "exit"}, toy_book / "01_toy.ipynb")
    assert [path.name for path in toy_book.glob("*.ipynb")] == ["01_toy.failed.ipynb"]


def test_a_dead_kernel_is_reported(toy_book):
    with pytest.raises(BookError, match="kernel died"):
        run(toy_book, {"label": "kill"}, toy_book / "01_toy.ipynb")
    assert (toy_book / "01_toy.failed.ipynb").exists()


def test_an_interrupt_ends_the_kernels_and_what_is_done_stays(toy_book, monkeypatch, capsys):
    text = (toy_book / "notebooks/01_toy.py").read_text()
    for number in ("03", "04", "05"):
        (toy_book / f"notebooks/{number}_toy.py").write_text(text)
    first, *slow = [
        make_job(toy_book, number, {"label": label}, toy_book / f"{number}.ipynb")
        for number, label in (("03", "x"), ("04", "slow"), ("05", "slow"))
    ]

    def interrupt(display, *_):
        if display.done:
            raise KeyboardInterrupt

    monkeypatch.setattr(build.Display, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build.run_jobs([first, *slow], 2)
    assert "1 of 3 notebooks are done" in capsys.readouterr().err
    assert not [child for child in multiprocessing.active_children() if isinstance(child, Kernel)]
    assert [path.name for path in toy_book.glob("*.ipynb")] == ["03.ipynb"]


def test_a_kernel_that_is_to_end_is_not_interrupted_first():
    """Jupyter does so, and the kernel would report an error in the log of the book."""
    kernel = Kernel(target=time.sleep, args=(60,))
    kernel.start()
    kernel.send_signal(signal.SIGINT)
    kernel.join(0.5)
    assert kernel.is_alive()
    kernel.send_signal(signal.SIGTERM)
    kernel.join(5)
    assert kernel.poll() == -signal.SIGTERM


CHAPTER = """\
# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s"]  # which

# %%
import seaborn as sns
from phantombook import notebook
from phantomlib import Recipe
nb = notebook.start("03_drawn")
model = nb.load(nb.models[0])
runs = nb.store.run(model, nb.fitting_contexts(model)[:1], [1e-3], Recipe(steps=3))
nb.caption("fig-gap", "The gap.", alt="A line.")

# %%
nb.figure(sns.lineplot(runs.logit_gap.to_dataframe(), x="step", y="logit_gap"), "fig-gap", runs=runs)
"""


def test_a_chapter_is_the_same_in_every_kernel(toy_book):
    """Computed the first time, and then taken from the store."""
    (toy_book / "notebooks/03_drawn.py").write_text(CHAPTER)
    jobs = [make_job(toy_book, "03", {}, toy_book / f"{n}/03.ipynb") for n in range(2)]
    for job in jobs:
        execute(job)
    shown = [[cell.get("outputs") for cell in json.loads(job.output.read_text())["cells"]] for job in jobs]
    assert "image/svg+xml" in json.dumps(shown[0]) and "download=" in json.dumps(shown[0])
    assert shown[0] == shown[1]


def test_every_module_that_is_imported_beforehand_exists():
    for name in PRELOAD:  # the fork server itself would pass over one that does not
        assert importlib.util.find_spec(name), name


def test_jupyter_finds_the_kernel_by_its_name():
    (found,) = importlib.metadata.entry_points(group="jupyter_client.kernel_provisioners", name=NAME)
    assert found.load() is Preloaded


@pytest.mark.parametrize("header, title", [({}, execution.EXPERIMENT), ({"code": "shown"}, None)])
def test_the_experiment_is_folded_under_its_name_unless_the_header_shows_it(header, title):
    cells = [new_code_cell("x = 1"), new_code_cell("y", metadata={"tags": ["hide-input"]})]
    executed = new_notebook(cells=cells, metadata={"phantom": header})
    execution.tidy(executed, SimpleNamespace(name="01_x", profile="zoo", parameters={}, key=""))
    folds = [cell.metadata.get("mystnb", {}).get("code_prompt_show") for cell in executed.cells]
    assert folds == [title, None]
    tags = [cell.metadata.get("tags") for cell in executed.cells]
    assert tags == [["hide-input"] if title else None, ["hide-input"]]
