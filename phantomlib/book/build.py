"""Make the book: run every notebook of a profile, then build the pages."""

import concurrent.futures
import hashlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

import phantomlib
from phantomlib.book import parameters
from phantomlib.book.jobs import Job, command_of, cores, find_notebook, find_root, notebooks, read_notebook
from phantomlib.book.notebook import FITTING
from phantomlib.book.worker import Worker
from phantomlib.errors import BookError, ParameterError, PhantomError, did_you_mean
from phantomlib.progress import Display, duration

GENERATED = Path("book/generated")  # executed notebooks and what the builder writes for the pages
TIMES = "run_times.json"
MOST_JOBS = 8  # unless more are asked for: each takes memory
BUILDER = "from jupyter_book.cli.main import main; main()"  # of this Python, wherever its scripts are installed
# Files of the package that decide how a notebook is started and shown on a terminal, but not what is in it.
WITHOUT_INFLUENCE = {"cli.py", "book.py", "kernels.py", "progress.py", "cluster.py"}


@dataclass(frozen=True)
class Profile:
    """A set of parameters for all notebooks: ``common`` for each, ``own[number]`` for one."""

    name: str
    common: dict
    own: dict[str, dict]

    def values(self, number: str) -> dict:
        return self.common | self.own.get(number, {})


def load_profile(root: Path, name: str) -> Profile:
    """Read ``notebooks/profiles/NAME.yaml``.

    Raises:
        ParameterError: no such profile, not YAML, or a key that is neither ``common`` nor the number of a notebook.
    """
    folder = root / "notebooks" / "profiles"
    known = [path.stem for path in sorted(folder.glob("*.yaml"))]
    if name not in known:
        near = did_you_mean(name, known)
        raise ParameterError(f"There is no profile '{name}'{near}. Those in {folder}: {', '.join(known) or 'none'}.")
    content = parameters.load_mapping(folder / f"{name}.yaml")
    numbers = notebooks(root)
    for key, values in content.items():
        if key != "common" and key not in numbers:
            raise ParameterError(
                f"Profile '{name}' has a section '{key}'; sections are 'common' and the notebooks {', '.join(numbers)} "
                "(in quotes)."
            )
        if not isinstance(values, dict | None):
            raise ParameterError(f"Section '{key}' of profile '{name}' is {values!r}; give parameters and values.")
    own = {key: values or {} for key, values in content.items() if key != "common"}
    return Profile(name, content.get("common") or {}, own)


def build_book(
    profile: str = "zoo", only: str | None = None, jobs: int | None = None, root: Path | None = None
) -> Path:
    """Run the notebooks whose inputs changed, then build the pages.

    Args:
        profile: which ``notebooks/profiles/*.yaml``.
        only: run only this notebook; the others must have been run before.
        jobs: how many notebooks at once; if None one more than there are cores, because some wait for runs of others.
        root: the project's root.

    Returns:
        the page to open.

    Raises:
        ParameterError: the profile or one of its values does not fit the notebooks: before anything runs.
        BookError: a notebook failed or is missing, or the pages do not build without warnings.
    """
    jobs = min(cores(), MOST_JOBS - 1) + 1 if jobs is None else jobs
    if jobs < 1:
        raise ParameterError(f"jobs is {jobs}; give a whole number of at least 1.")
    root = root or find_root()
    plan = make_plan(root, load_profile(root, profile))
    chosen = plan if only is None else [job for job in plan if job.source == find_notebook(root, only)]
    if not chosen:
        raise ParameterError(f"Notebook '{only}' is not part of the book (_toc.yml); run it with 'phantom run {only}'.")
    for path in notebooks(root).values():
        if path not in [job.source for job in plan]:
            print(f"Note: {path.name} is not in _toc.yml, so it is not part of the book.")
    (root / GENERATED).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / GENERATED / ".lock", timeout=0):
            run_jobs([job for job in chosen if not is_current(job)], jobs, root, profile)
            check_complete(plan, profile)
            write_times(root, plan)
            write_glued(root, plan)
            return build_pages(root)
    except Timeout:
        raise BookError(f"Another 'phantom book' is at work in '{root}'. Wait until it ends, then run again.") from None


def make_plan(root: Path, profile: Profile) -> list[Job]:
    """One job per notebook page of ``_toc.yml``, its parameters checked.

    A notebook that reads what others recorded says so in its header, ``phantom: {after: all}`` under ``jupyter:``, or
    ``after: ["01", "02"]``. It then runs after them, and again whenever they do. With ``minutes: 5`` it starts before
    shorter ones.

    Raises:
        BookError: the table of contents, or a notebook's header, names a notebook that does not exist.
    """
    available = {path.stem: (number, path) for number, path in notebooks(root).items()}
    plan, package = [], hash_package()
    for name in pages_to_generate(root):
        if name not in available:
            raise BookError(f"_toc.yml lists '{GENERATED / name}', but there is no notebooks/{name}.py.")
        number, source = available[name]
        content = read_notebook(source)
        values = parameters.check_parameters(profile.values(number), parameters.declared(content), name)
        key = hash_inputs(source, values, profile.name, package, root)
        output = root / GENERATED / f"{name}.ipynb"
        command = command_of(name, {}, profile.name)
        header = content.metadata.get("phantom", {})
        after, minutes = header.get("after", []), header.get("minutes", 0)
        plan.append(Job(source, output, root, values, command, profile.name, key, after, minutes))
    names = {job.name[:2]: job.name for job in plan}
    waiting = {job.name for job in plan if job.after == "all"}
    planned = []
    for job in plan:
        if job.after == "all":
            after = [other.name for other in plan if other.name not in waiting]
        elif all(number in names for number in job.after):
            after = [names[number] for number in job.after]
        else:
            raise BookError(
                f"Notebook {job.name} comes after {job.after}; give a list of {', '.join(names)}, or 'all'."
            )
        planned.append(replace(job, after=tuple(after)))
    keys = {job.name: job.key for job in planned}
    return [replace(job, key=_digest([job.key, *(keys[name] for name in job.after)])) for job in planned]


def pages_to_generate(root: Path) -> list[str]:
    """Names of the notebooks in ``_toc.yml``, in its order."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    found = []

    def walk(node):
        if isinstance(node, dict):
            if str(node.get("file", "")).startswith(f"{GENERATED.as_posix()}/"):
                found.append(Path(node["file"]).stem)
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(toc)
    return found


def hash_package() -> str:
    """Hash of the package's source, contexts and weights: a change of any of them makes notebooks run again."""
    folder, digest = Path(phantomlib.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and "__pycache__" not in name and name not in WITHOUT_INFLUENCE:
            digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def hash_inputs(source: Path, values: dict, profile: str, package: str, root: Path) -> str:
    """Hash of everything an executed notebook depends on."""
    files = {}  # contexts by content; folders of weights, which may be large, by size and time
    for text in _texts(values):
        path = root / text.removeprefix(FITTING)
        if path.is_file():
            files[text] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif text != values.get("store") and path.is_dir():
            files[text] = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(path.glob("*"))]
    inputs = [source.read_text(encoding="utf-8"), values, profile, package, files]
    return _digest(inputs)


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _texts(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def is_current(job: Job) -> bool:
    """Whether the executed notebook was made from the same inputs."""
    return _made_from(job).get("key") == job.key and not job.failed.exists()


def _made_from(job: Job) -> dict:
    """What the executed notebook says it was made from; empty if there is none, or it is damaged."""
    try:
        return json.loads(job.output.read_text(encoding="utf-8"))["metadata"]["phantom"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def check_complete(plan: list[Job], profile: str) -> None:
    """Refuse to build a book from missing, failed or mixed notebooks.

    Raises:
        BookError: naming each such notebook.
    """
    problems = []
    for job in plan:
        made = _made_from(job)
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
            f"The book is not built: {'; '.join(problems)}. Make what is left: phantom book --profile {profile}"
        )


def run_jobs(todo: list[Job], jobs: int, root: Path, profile: str) -> None:
    """Run notebooks, several at a time; those that finish stay even if another fails or the user interrupts.

    Raises:
        PhantomError: what one notebook raised on purpose; BookError if several failed.
        KeyboardInterrupt: after all workers have ended.
    """
    if not todo:
        print("All notebooks are up to date.")
        return
    times, stop, failures = read_times(root), threading.Event(), {}
    idle = queue.SimpleQueue()  # of workers
    expected = {job.name: times.get(job.name, {}).get(profile) for job in todo}

    def work(job: Job) -> float:
        display.started(job.name)
        try:
            worker = idle.get_nowait()
        except queue.Empty:
            worker = Worker(root, preload=len(todo) > jobs, jobs=min(jobs, len(todo)))
        seconds = worker.execute(job, lambda report: display.update(job.name, report), stop)
        idle.put(worker)
        return seconds

    with Display(expected, jobs) as display, concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        waiting, running = {job.name: job for job in sorted(todo, key=lambda job: -job.minutes)}, {}
        try:
            while waiting or running:
                unfinished = {*waiting, *running.values(), *failures}
                for job in list(waiting.values()):
                    if not unfinished.intersection(job.after):
                        running[pool.submit(work, waiting.pop(job.name))] = job.name
                if not running:
                    break  # what is left waits for a notebook that failed
                for future in concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED).done:
                    name, error = running.pop(future), future.exception()
                    if error:
                        failures[name] = error
                    else:
                        record_time(root, name, profile, future.result())
                    display.finished(name, error)
        except BaseException:  # Ctrl-C above all
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            done = len(todo) - len(waiting) - len(running) - len(failures)
            display.say(f"Interrupted: {done} of {len(todo)} notebooks are done and stay; the next start resumes.")
            raise
        finally:
            while not idle.empty():
                idle.get().close()
    unexpected = [error for error in failures.values() if not isinstance(error, PhantomError)]
    if unexpected:
        raise unexpected[0]
    if len(failures) == 1:
        raise next(iter(failures.values()))
    if failures:
        raise BookError("\n".join(f"{name}: {error}" for name, error in failures.items()))


def read_times(root: Path) -> dict[str, dict[str, float]]:
    """Seconds each notebook took when it last ran, by notebook and profile."""
    try:
        return json.loads((root / GENERATED / TIMES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def record_time(root: Path, name: str, profile: str, seconds: float) -> None:
    times = read_times(root)
    times.setdefault(name, {})[profile] = round(seconds, 1)
    _write(root / GENERATED / TIMES, json.dumps(times, indent=1, sort_keys=True) + "\n")


def write_times(root: Path, plan: list[Job]) -> None:
    """The table of run times that a page of the book includes."""
    times = read_times(root)
    rows = ["| Notebook | Profile | Last run took |", "|---|---|---|"]
    for job in plan:
        seconds = times.get(job.name, {}).get(job.profile)
        took = "not recorded" if seconds is None else duration(seconds)
        rows.append(f"| `{job.name}` | `{job.profile}` | {took} |")
    _write(root / GENERATED / "run_times.md", "\n".join(rows) + "\n")


GLUED = {"image/svg+xml": "svg", "text/markdown": "md"}  # kinds of glued output that other pages include as files


def write_glued(root: Path, plan: list[Job]) -> None:
    """Write glued figures and tables to ``glued_KEY.svg`` or ``.md``: pages outside the notebook include them from there."""
    for job in plan:
        cells = json.loads(job.output.read_text(encoding="utf-8"))["cells"]
        for output in (output for cell in cells for output in cell.get("outputs", ())):
            name = output.get("metadata", {}).get("scrapbook", {}).get("name")
            for kind, text in output.get("data", {}).items():
                ending = GLUED.get(kind.removeprefix("application/papermill.record/"))
                if name and ending:
                    _write(root / GENERATED / f"glued_{name}.{ending}", "".join(text) + "\n")


def _write(path: Path, text: str) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)


def build_pages(root: Path) -> Path:
    """Build the HTML with warnings as errors, from nothing: stale pages of an earlier build would stay otherwise.

    Raises:
        BookError: with Sphinx's warnings.
    """
    for folder in ("html", ".doctrees", "jupyter_execute"):
        shutil.rmtree(root / "_build" / folder, ignore_errors=True)
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
