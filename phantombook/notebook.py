"""What every notebook calls first: check the common parameters, open contexts and store, show figures, tables and sentences.

A notebook needs two lines to start, and one for whatever it shows::

    from phantombook import notebook
    nb = notebook.start("02_silent_failure")
    ...
    nb.say("Cross-entropy falls by {fall:.2f} nats.", fall=fall)

Below each figure and table follows the folded line "How this was made": command, parameters, runs, commit, and the numbers.
What a notebook measures counts for the ledger only if ``phantom run`` or ``phantom book`` started it and it ran through.
"""

import ast
import json
import os
import sys
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from IPython import display
from matplotlib import pyplot
from matplotlib_inline.backend_inline import set_matplotlib_formats

from phantombook import markup
from phantombook.figures import escaping, figure_data, stacked, style
from phantombook.parameters import COMMON, EDITED, FITTING, check_inputs
from phantombook.plan import Job, make_job
from phantombook.project import find_root, load_profile
from phantomlib.contexts import Context, Resolved
from phantomlib.engine import cluster, recipe
from phantomlib.errors import ContextError, ParameterError, all_at_once, shown
from phantomlib.models import language_model
from phantomlib.runs.store import Store, commit

JOB: Job | None = None  # which this notebook is run for; set by the runner in the kernel that it starts
REST = "The first {top} of {rows} rows. The file under *How this was made* has all."
SCRATCH = Path()  # that the kernel and its runner share


class Notebook:
    """One notebook: its parameters, checked and opened, and what it shows.

    Attributes:
        name: file name without its ending, e.g. ``02_silent_failure``.
        parameters: every parameter by name; ``models``, ``device``, ``dtype`` and ``seed`` are attributes too.
        contexts: the loaded contexts (``phantomlib.contexts.Context``).
        store: the store of runs (``phantomlib.runs.store.Store``).
        profile: name of the profile it runs with, or "".
    """

    def __init__(self, name: str, parameters: Mapping, contexts: list[Context], store: Store, recording=None):
        self.name, self.parameters, self.contexts, self.store = name, COMMON | dict(parameters), contexts, store
        self.models: list[str] = self.parameters["models"]
        self.device, self.dtype, self.seed = (self.parameters[key] for key in ("device", "dtype", "seed"))
        self.profile = JOB.profile if JOB else ""
        self._recording = recording  # of its measurements; None unless the runner started it
        self._measured: dict[tuple[str, str], Any] = {}  # by claim and optimiser
        self._fitting: dict[str, list[Resolved]] = {}  # by model fingerprint
        self._captions: dict[str, tuple[str, str]] = {}
        self._tables = 0  # shown so far; numbers their downloads

    def load(self, ref: str, **options):
        """Load one model with this notebook's device and dtype (``phantomlib.models.language_model.load``)."""
        return language_model.load(ref, **{"dtype": self.dtype, "device": self.device} | options)

    def record(self, claim: str, value, *, optimizer: str, n: Mapping[str, int], runs, **options) -> None:
        """Record a measurement for the ledger (see :func:`phantombook.ledger.claims.measured`).

        It counts once this notebook has run through. Unless the runner started it, it counts nowhere, and the page says so.
        ``runs``: as in :meth:`figure`.
        """
        from phantombook.ledger import claims  # the ledger only takes down what is measured: no page rests on it

        made = claims.measured(claim, value, optimizer=optimizer, n=n, runs=_run_ids(runs), **options)
        self._measured[claim, optimizer] = made
        if self._recording:
            self._recording.add(claim, optimizer, made)
        else:
            self.say(f"> {claim} is not recorded: this notebook was not started by `phantom run` or `phantom book`.")

    def verdict(self, claim, optimizer: str | None = None):
        """What this notebook's own measurement of a claim comes to, before the ledger has it (``ledger.claims.Verdict``)."""
        from phantombook.ledger import claims

        optimizer = optimizer or claim.decides
        return claims.judge_measurement(claim, self.store, optimizer, self._measured[claim.id, optimizer])

    def fitting_contexts(self, model) -> list[Resolved]:
        """The contexts as ids of one model (``phantomlib.contexts.Resolved``), each outranked by its competitor.

        If the parameter ``contexts`` starts with ``fitting:``, those that do not fit are left out, and the page says so.

        Raises:
            ContextError: naming every context of which the tokenizer does not hold a word, or whose correct word the model
                prefers already.
        """
        if model.fingerprint not in self._fitting:
            found, refused = recipe.fitting_contexts(model, self.contexts)
            if not self.parameters["contexts"].startswith(FITTING):
                all_at_once(refused, f"in the {len(self.contexts)} contexts for '{model.name}'")
            for error in refused:
                self.say("> Left out for {model}: {reason}", model=model.name, reason=str(error))
            for one in filter(attrgetter("compared"), found):
                self.say("> {context}: {compared}.", context=one.id, compared=one.compared)
            if not found:
                raise ContextError(f"None of the {len(self.contexts)} contexts fits '{model.name}'; give some that do.")
            self._fitting[model.fingerprint] = found
        return list(self._fitting[model.fingerprint])

    @property
    def command(self) -> str:
        """The command that makes this notebook again."""
        if JOB:
            return JOB.command
        values = " ".join(f"-p {key} {json.dumps(value)!r}" for key, value in sorted(self.parameters.items()))
        return f"phantom run {self.name.split('_')[0]} {values}"

    def say(self, template: str, row: Mapping | None = None, **values) -> None:
        """Show sentences whose numbers come from the run, as Markdown (see :func:`phantombook.markup.fill`).

        ``row``: values by name, a mapping or a row of a pandas table; ``values``: further ones.
        """
        say(markup.fill(template, row, values))

    def answer(self, template: str, row: Mapping | None = None, **values) -> None:
        """Write the answer of the chapter, as in :meth:`say`; it stands where the chapter's head pastes it.

        The head is Markdown and comes first, the numbers come later. So the head holds, for chapter 02::

            ```{glue:md} answer_02
            :format: myst
            ```
        """
        from myst_nb import glue  # loads Sphinx

        text = f"**Answer.** {markup.fill(template, row, values)}"
        # in Jupyter, where the head shows only its own source, the answer is shown where it is written
        glue(f"answer_{self.name.split('_')[0]}", display.Markdown(text), display=not JOB)

    def caption(self, name: str, caption: str, *, alt: str) -> None:
        """Write the caption of a figure, MyST text, before it is shown, and what a reader who cannot see it should know.

        Panels that it names (a), (b), ... get these letters (:func:`phantombook.figures.stacked.letter_panels`).
        It stands in a cell tagged ``remove-cell``, beside its figure in the editor and only below it on the page.
        """
        self._captions[name] = (caption, alt)

    def figure(self, figure, name: str, *, runs=None, data=None) -> None:
        """Show a figure with its number, its caption (:meth:`caption`) and alt text, then the line "How this was made".

        Args:
            figure: a matplotlib figure, or axes of it.
            name: prose refers to it, from any page, by ``{numref}`NAME```.
            runs: datasets of the store, run ids, or lists and mappings of these; none for what needs no run.
            data: the tidy table that the figure draws, to be downloaded; read back from the figure if None.
        """
        drawing = figure.figure
        if "(a)" in self._captions[name][0]:
            stacked.letter_panels(drawing)
        frame = figure_data.drawn(drawing) if data is None else data
        display.display(markup.figure(drawing, name, *self._captions[name]), raw=True)
        pyplot.close(drawing)  # or IPython would show it a second time
        self._show_origin(runs, name, frame)

    def table(
        self, frame, digits: int = 3, *, fold: str | None = None, top: int | None = None, cards=False, runs=None
    ) -> None:
        """Show a pandas table, floats with ``digits`` decimals, then the line "How this was made".

        Args:
            frame: the table; an undefined number (nan) is shown as a dash.
            digits: decimals of floats.
            fold: fold the table under this line.
            top: show this many rows, and say that the file to be downloaded has all.
            cards: on a phone each row is a card. A row whose first cell is empty continues the card above.
            runs: as in :meth:`figure`.
        """
        text = markup.markdown_table(frame, digits)
        if fold:
            text = f":::{{dropdown}} {fold}\n{text}\n:::"
        elif top is not None and len(frame) > top:
            text = f"{markup.markdown_table(frame.head(top), digits)}\n\n{REST.format(top=top, rows=len(frame))}"
        say(f":::{{div}} cards\n{text}\n:::" if cards else text)
        self._tables += 1
        self._show_origin(runs, f"table-{self._tables}", frame)

    def _show_origin(self, runs, name: str, frame) -> None:
        """The folded line "How this was made": command, parameters, run ids, commit, and ``frame`` to download."""
        ids, known = list(dict.fromkeys(_run_ids(runs))), commit()
        changed = " with uncommitted changes" if known.endswith("+") else ""
        rows = {
            "Command": markup.code(self.command),
            "Parameters": markup.code(", ".join(f"{k}={markup.typed(v)}" for k, v in sorted(self.parameters.items()))),
            "Runs": f"{len(ids)}: {markup.download(f'{self.name}-{name}-runs.csv', pd.DataFrame({'run': ids}))}"
            if ids
            else "none (computed from the models alone)",
            "Commit": markup.code(known.rstrip("+")) + changed if known else "not a git checkout",
            "Data": markup.download(f"{self.name}-{name}.csv", frame),
        }
        page = "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in rows.items())
        bundle = {
            "text/html": f'<details class="made-by"><summary>How this was made</summary><dl>{page}</dl></details>',
            "text/plain": f"How this was made: {self.command}",
        }
        display.display(bundle, raw=True)

    def glue(self, key: str, value) -> None:
        """Name a number or text so that prose can quote it, with the role ``glue:text`` (see "Extend it")."""
        from myst_nb import glue  # loads Sphinx

        # numpy scalars would be stored as 'np.float64(...)', which no format can be applied to
        glue(key, value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value, display=False)


def start(name: str) -> Notebook:
    """Check the parameters, set the figure style and one thread per process, open the contexts and the store.

    Args:
        name: the notebook's file name without its ending.

    The parameters are those that the running notebook declares (:func:`declared_here`). Those of
    :func:`phantombook.parameters.check_inputs` are checked; only ``models`` has to be there. What this notebook recorded before
    with the same parameters is dropped: a verdict rests on a notebook that ran through.

    Raises:
        ParameterError: a parameter is missing, has a wrong type or an impossible value; the name is another notebook's.
        ContextError, ModelError, StoreError: the contexts, a model or the store cannot be used.
    """
    if JOB and JOB.name != name:
        raise ParameterError(f"This is {JOB.source.name}, but it starts as '{name}'. Write its own name there.")
    parameters = COMMON | declared_here() | _edited(name)
    contexts = check_inputs(**{key: parameters[key] for key in (*COMMON, "multiples") if key in parameters})
    torch.set_num_threads(1)
    style.use_style()
    set_matplotlib_formats("svg", metadata={"Date": None})
    store, recording = Store(parameters["store"], cluster.runner()), None
    if JOB:
        from phantombook.ledger.measurements import Experiment, Recording

        recording = Recording(store, Experiment(JOB.source, parameters), SCRATCH)
    return Notebook(name, parameters, contexts, store, recording)


def declared_here() -> dict[str, Any]:
    """The parameters of the running notebook as they are set in its kernel: the names that its cells annotate.

    In a notebook, ``name: type = value`` is how a parameter is declared, and nothing else is annotated. The cells that ran
    are asked, not a file: a notebook may have been copied, and its parameters injected.
    """
    session = vars(sys.modules["__main__"])
    found: dict[str, Any] = {}
    for cell in session.get("In", ()):
        try:
            body = ast.parse(cell).body
        except SyntaxError:  # a cell with a command of IPython declares nothing
            continue
        for line in body:
            match line:
                case ast.AnnAssign(ast.Name(name), annotation) if name in session:
                    found[name] = session[name]
                    if isinstance(found[name], str) and ast.unparse(annotation).startswith("list"):
                        told = (
                            f"{name} is text, {shown(found[name])}, but it must be a list; papermill's -p passes text"
                        )
                        raise ParameterError(f"{told}. Use -y '{{{name}: [...]}}', or phantom run.")
    return found


def _edited(name: str) -> dict[str, Any]:
    """In JupyterLab as ``phantom edit`` starts it: go to the project's root, and set the profile's parameters."""
    if JOB or EDITED not in os.environ:
        return {}
    os.chdir(root := find_root())
    profile = load_profile(root, os.environ[EDITED])
    values = make_job(root, name, {}, profile=profile).parameters
    vars(sys.modules["__main__"]).update(values)
    listed = ", ".join(f"{key}={markup.typed(value)}" for key, value in values.items()) or "none"
    say(f"> For this session only, the parameters of the profile {profile.name}: {escaping.in_markdown(listed)}")
    return values


def say(text: str) -> None:
    """Show text as Markdown."""
    display.display(display.Markdown(text))


def _run_ids(runs) -> list[str]:
    """Ids named by datasets and tables of runs, strings, or lists and mappings of these."""
    if runs is None:
        return []
    if isinstance(runs, str):
        return runs.split()
    if hasattr(runs, "attrs"):  # a Dataset is a Mapping too, so it is asked first
        if not {"run_id", "run_ids"} & runs.attrs.keys():
            raise ParameterError("A dataset without run_id names no run. Give what the store gave, or the run's id.")
        return _run_ids(runs.attrs.get("run_ids", runs.attrs.get("run_id")))  # a search took several runs
    many = runs.values() if isinstance(runs, Mapping) else runs
    return [run_id for run in many for run_id in _run_ids(run)]
