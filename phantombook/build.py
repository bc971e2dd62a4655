"""Make the book: run the notebooks of a profile whose inputs changed, then build the pages."""

import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from filelock import FileLock, Timeout

from phantombook.display import Display, duration
from phantombook.execution import execute
from phantombook.parameters import COMMON, check_inputs, chosen_held_out
from phantombook.plan import Job, is_current, made_from, make_plan
from phantombook.preloaded_kernel import start_server
from phantombook.project import GENERATED, cores, find_notebook, find_root, load_profile, notebooks
from phantomlib.errors import BookError, ParameterError, PhantomError
from phantomlib.files import write_text
from phantomlib.progress import read_report

TIMES = GENERATED / "run_times.json"  # seconds that each notebook took last, by notebook and profile
MOST_JOBS = 8  # unless more are asked for: each takes memory
# Of this Python, wherever its scripts are installed
BUILDER = "import phantombook.ends_with_parent; from jupyter_book.cli.main import main; main()"
GLUED = {"image/svg+xml": "svg", "text/markdown": "md"}  # kinds of glued output that other pages include as files


def build_book(
    profile: str = "zoo", only: str | None = None, jobs: int | None = None, root: Path | None = None
) -> Path:
    """Run the notebooks whose inputs changed, then build the pages; says what it wrote, and returns the page to open.

    Args:
        profile: which ``notebooks/profiles/*.yaml``.
        only: run only this notebook; the others must have been run before.
        jobs: how many notebooks at once; if None one more than there are cores, because some wait for runs of others.
        root: the project's root.

    Raises:
        PhantomError: the profile or one of its values cannot be used: before anything runs or is written.
        BookError: a notebook failed or is missing, or the pages do not build without warnings.
    """
    root = root or find_root()
    jobs = min(cores(), MOST_JOBS - 1) + 1 if jobs is None else jobs
    plan = make_plan(root, load_profile(root, profile))
    todo = [job for job in choose(plan, root, only, jobs) if not is_current(job)]
    check_todo(todo, root)
    for path in notebooks(root).values():
        if path not in [job.source for job in plan]:
            print(f"Note: {path.name} is not in _toc.yml, so it is not part of the book.")
    (root / GENERATED).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / GENERATED / ".lock", timeout=0):
            if todo:
                run_jobs(todo, jobs, root / TIMES)
            else:
                print("All notebooks are up to date.")
            check_complete(plan, profile)
            write_included(root, plan)
            index = build_pages(root)
    except Timeout:
        raise BookError(f"Another 'phantom book' is at work in '{root}'. Wait until it ends, then run again.") from None
    pages = len(list(index.parent.rglob("*.html")))
    print(f"Written: {len(todo)} of {len(plan)} notebooks to '{root / GENERATED}', {pages} pages to '{index.parent}'.")
    return index


def choose(plan: list[Job], root: Path, only: str | None, jobs: int) -> list[Job]:
    """The jobs of the plan, or the one asked for; ParameterError if there is no such notebook, or no job at a time."""
    if jobs < 1:
        raise ParameterError(f"jobs is {jobs}; give a whole number of at least 1.")
    chosen = plan if only is None else [job for job in plan if job.source == find_notebook(root, only)]
    if not chosen:
        raise ParameterError(f"Notebook '{only}' is not part of the book (_toc.yml); run it with 'phantom run {only}'.")
    return chosen


def check_todo(todo: list[Job], root: Path) -> None:
    """Refuse at once, and once, what every notebook would refuse when it starts: contexts, a model, a device, a precision."""
    with contextlib.chdir(root):
        for values in (COMMON | job.all_parameters for job in todo if "models" in job.all_parameters):
            models, further = values["models"], [*values.get("charted", ()), values.get("held_out")]
            if "held_out" in values:
                chosen_held_out(models, values["held_out"])
            models = models + [ref for ref in further if ref and ref not in models]
            check_inputs(models, values["contexts"], values["device"], values["dtype"])


def check_complete(plan: list[Job], profile: str) -> None:
    """Raise BookError if a notebook is missing, failed, or was run with another profile."""
    problems = []
    for job in plan:
        made = made_from(job)
        if job.failed.exists():
            problems.append(f"{job.name} failed (see '{job.failed}')")
        elif not made:
            problems.append(f"{job.name} has not been run")
        elif made.get("profile") != profile:
            problems.append(f"{job.name} was run with profile '{made.get('profile')}'")
        elif made.get("key") != job.key:
            print(f"Note: {job.name} is older than its inputs; 'phantom book --profile {profile}' runs it again.")
    if problems:
        raise BookError(
            f"The book is not built: {'; '.join(problems)}. Make the rest: phantom book --profile {profile}"
        )


def run_jobs(todo: list[Job], jobs: int = 1, times: Path | None = None) -> None:
    """Run notebooks, several at a time; those that finish stay even if another fails or the user interrupts.

    What two of them refuse for the same reason, the others would refuse too: they are not started.

    Args:
        todo: what to run; a notebook waits for those of its ``after`` that are among them.
        jobs: how many at once.
        times: a file of how long each took (:func:`read_times`), read for the time left and kept up.

    Raises:
        PhantomError: what one notebook raised on purpose; BookError if several failed.
        KeyboardInterrupt: after all kernels have ended.
    """
    by_name = {job.name: job for job in todo}
    graph = TopologicalSorter({job.name: by_name.keys() & set(job.after) for job in todo})
    try:
        graph.prepare()
    except CycleError as error:
        named = ", ".join(error.args[1])
        raise BookError(f"Notebooks wait for each other: {named}. Mend 'after' in a header.") from None
    start_server()
    took = read_times(times) if times else {}
    expected = {job.name: took.get(job.name, {}).get(job.profile) for job in todo}
    running: dict[concurrent.futures.Future, str] = {}
    latest, failures = dict[str, dict](), dict[str, BaseException]()  # what each notebook said last; what it raised
    ready, stop = list[str](), threading.Event()
    with Display(expected, jobs) as display, concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        try:
            while True:
                ready = sorted([*ready, *graph.get_ready()], key=lambda name: -by_name[name].minutes)
                shared = len({str(error) for error in failures.values()}) < len(failures)
                while ready and len(running) < jobs and not shared:
                    name = ready.pop(0)
                    display.started(name)
                    told, share = partial(latest.__setitem__, name), min(jobs, len(todo))
                    running[pool.submit(execute, by_name[name], told, share, stop.is_set)] = name
                if not running:
                    break  # what is left, if anything, waits for a notebook that failed
                done, _ = concurrent.futures.wait(running, 0.3, concurrent.futures.FIRST_COMPLETED)
                for name in latest.keys() & {running[future] for future in running.keys() - done}:
                    display.update(name, latest[name] | (read_report(latest[name]["watch"]) or {}))
                for future in done:
                    name, problem = running.pop(future), future.exception()
                    if problem:
                        failures[name] = problem
                    else:
                        graph.done(name)
                        took.setdefault(name, {})[by_name[name].profile] = round(future.result(), 1)
                    display.finished(name, problem)
                if times and done:
                    write_text(times, json.dumps(took, indent=1, sort_keys=True) + "\n")
        except BaseException:  # Ctrl-C above all
            stop.set()
            while not all(future.cancel() or future.done() for future in running):
                for kernel in multiprocessing.active_children():  # those too that are only being started
                    kernel.kill()
                concurrent.futures.wait(running, 0.2)
            finished = len(display.done) - len(failures)
            display.say(f"Interrupted: {finished} of {len(todo)} notebooks are done and stay; the next start resumes.")
            raise
    raise_failures(failures)


def raise_failures(failures: dict[str, BaseException]) -> None:
    """Raise what notebooks raised, by name, as one error; nothing if there are none."""
    reasons: dict[str, list[str]] = {}
    for name, error in failures.items():
        if not isinstance(error, PhantomError):
            raise error
        reasons.setdefault(str(error), []).append(name)
    if len(reasons) == 1:
        raise next(iter(failures.values()))
    if reasons:
        raise BookError("\n".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items()))


def read_times(path: Path) -> dict[str, dict[str, float]]:
    """Seconds each notebook took when it last ran, by notebook and profile; empty if nothing readable is there."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write_included(root: Path, plan: list[Job]) -> None:
    """Write what pages include as files: the table of run times, and what notebooks glued, as ``glued_KEY.svg`` or ``.md``."""
    times, rows = read_times(root / TIMES), ["| Notebook | Profile | Last run took |", "|---|---|---|"]
    for job in plan:
        seconds = times.get(job.name, {}).get(job.profile)
        rows.append(f"| `{job.name}` | `{job.profile}` | {duration(seconds) if seconds else 'not recorded'} |")
        cells = json.loads(job.output.read_text(encoding="utf-8"))["cells"]
        for output in (output for cell in cells for output in cell.get("outputs", ())):
            name = output.get("metadata", {}).get("scrapbook", {}).get("name")
            for kind, text in output.get("data", {}).items():
                ending = GLUED.get(kind.removeprefix("application/papermill.record/"))
                if name and ending:
                    write_text(root / GENERATED / f"glued_{name}.{ending}", "".join(text) + "\n")
    write_text(root / GENERATED / "run_times.md", "\n".join(rows) + "\n")


def build_pages(root: Path) -> Path:
    """Build the HTML from nothing, so that no stale page stays; BookError with Sphinx's warnings, if there are any."""
    for folder in ("_build/html", "_build/.doctrees", "_build/jupyter_execute", GENERATED / "reference"):
        shutil.rmtree(root / folder, ignore_errors=True)
    command = [sys.executable, "-c", BUILDER, "build", str(root), "-W", "-n", "--keep-going"]
    print("Building the pages.", file=sys.stderr, flush=True)
    environment = os.environ | {"NO_COLOR": "1"}
    built = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    index = root / "_build" / "html" / "index.html"
    if built.returncode or not index.is_file():
        complaints = [line for line in built.stderr.splitlines() if "WARNING" in line or "ERROR" in line]
        text = "\n".join(complaints or (built.stderr or built.stdout).splitlines()[-15:])
        raise BookError(f"The pages do not build without warnings:\n{text}\nMend them and run 'phantom book' again.")
    return index
