"""What is to run: a job for each notebook, its parameters checked, and the key that says whether it must run again."""

import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from phantombook import stale
from phantombook.parameters import check_parameters, declared, named_files
from phantombook.project import GENERATED, Profile, find_notebook, notebooks, pages_to_generate, read_notebook
from phantomlib.errors import BookError, ParameterError
from phantomlib.files import digest, file_digest


@dataclass(frozen=True)
class Job:
    """One notebook to run."""

    source: Path  # the .py notebook
    output: Path  # where the executed .ipynb goes
    root: Path  # of the project: the kernel's working folder
    parameters: dict  # the values that differ from the notebook's defaults, checked
    defaults: dict  # what the notebook declares, by name
    command: str  # what a reader types to get the same
    profile: str  # its name, or ""
    after: tuple[str, ...]  # names of the notebooks that must have run before
    minutes: float  # about how long it takes in the zoo profile; 0 if short
    key: str = ""  # hash of everything the result depends on

    @property
    def name(self) -> str:
        return self.source.stem

    @property
    def all_parameters(self) -> dict:
        return self.defaults | self.parameters

    @property
    def failed(self) -> Path:
        """What is left of a notebook in which a cell raised."""
        return self.output.with_suffix(".failed.ipynb")


def make_job(
    root: Path, number: str | int, values: dict, output: Path | str | None = None, profile: Profile | None = None
) -> Job:
    """The job of one notebook.

    Args:
        root: the project's root.
        number: which notebook, see :func:`phantombook.project.find_notebook`.
        values: parameters by name; those not named have the profile's value, else the notebook's default.
        output: the executed notebook; ``NN_name.ipynb`` in the working folder if None.
        profile: a set of values.

    Raises:
        ParameterError: unknown notebook or parameter, a value of a wrong type, or an output that is no notebook.
    """
    source = find_notebook(root, number)
    target = Path(output or f"{source.stem}.ipynb").resolve()
    if target.is_dir() or target.suffix != ".ipynb":
        raise ParameterError(f"The output '{target}' cannot be a notebook; name a file that ends in .ipynb.")
    content = read_notebook(source)
    known = declared(content)
    header = content.metadata.get("phantom", {})
    given = check_parameters(values, known, source.stem)
    chosen = check_parameters(profile.values(source.stem[:2]) if profile else {}, known, source.stem)
    words = ["phantom run", source.stem[:2]] + (["--profile", profile.name] if profile else [])
    for name, value in given.items():
        words.append(f"-p {name} {shlex.quote(value if isinstance(value, str) else json.dumps(value))}")
    return Job(
        source=source,
        output=target,
        root=root,
        parameters=chosen | given,
        defaults={name: parameter.default for name, parameter in known.items()},
        command=" ".join(words),
        profile=profile.name if profile else "",
        after=header.get("after", ()),
        minutes=header.get("minutes", 0),
    )


def make_jobs(root: Path, profile: Profile) -> list[Job]:
    """One job for each notebook page of ``_toc.yml``, without keys; BookError if it names a notebook that does not exist."""
    listed, available = pages_to_generate(root), [path.stem for path in notebooks(root).values()]
    if missing := [name for name in listed if name not in available]:
        raise BookError(f"_toc.yml lists '{GENERATED / missing[0]}', but there is no notebooks/{missing[0]}.py.")
    return [make_job(root, name, {}, root / GENERATED / f"{name}.ipynb", profile) for name in listed]


def make_plan(root: Path, profile: Profile) -> list[Job]:
    """The jobs of :func:`make_jobs` with their keys, and each with the names of those that it comes after.

    A notebook that reads what others recorded says so in its header, ``phantom: {after: all}`` under ``jupyter:``, or
    ``after: ["01", "02"]``. It then runs after them, and again whenever they may record something else. With
    ``minutes: 5`` it starts before shorter ones. BookError if a header names a notebook that does not exist.
    """
    plan = make_jobs(root, profile)
    names = {job.name[:2]: job.name for job in plan}
    recorded = {job.name: hash_inputs(job, without="phantombook.figures") for job in plan}
    independent = [job.name[:2] for job in plan if job.after != "all"]
    planned = []
    for job in plan:
        numbers = independent if job.after == "all" else job.after
        if not set(numbers) <= set(names):
            raise BookError(f"Notebook {job.name} comes after {job.after}; give 'all' or some of {', '.join(names)}.")
        after = tuple(names[number] for number in numbers)
        key = digest([hash_inputs(job), *(recorded[name] for name in after)])
        planned.append(replace(job, after=after, key=key))
    return planned


def hash_inputs(job: Job, without: str = "") -> str:
    """Hash of what an executed notebook is made from: its text, parameters and the files they name, the modules it reaches.

    Those of the package ``without`` are left out. BookError if the notebook is not Python.
    """
    files: dict = {}
    for name, path in named_files(job.all_parameters | {"store": ""}, job.root).items():
        if path.is_dir():  # of weights, which may be large
            files[name] = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(path.glob("*"))]
        else:
            files[name] = file_digest(path)
    text = job.source.read_text(encoding="utf-8")
    try:
        code = stale.key(job.source, without)
    except SyntaxError as error:
        raise BookError(f"Notebook {job.name} is not Python ({error.msg}, line {error.lineno}). Mend it.") from None
    return digest([text, code, job.parameters, job.profile, files])


def made_from(job: Job) -> dict:
    """What the executed notebook says it was made from; empty if there is none, or it is damaged."""
    try:
        return json.loads(job.output.read_text(encoding="utf-8"))["metadata"]["phantom"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def is_current(job: Job) -> bool:
    """Whether the executed notebook was made from the same inputs."""
    return made_from(job).get("key") == job.key and not job.failed.exists()
