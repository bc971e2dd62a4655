"""What is measured. Each suite returns rows for a table; every ratio comes from contenders run in turn."""

import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import netCDF4
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import baseline, measure, needs
from benchmarks.models import contexts_of, first_context, load, rows_of
from phantomlib.critical.predictors import predict_critical_rates
from phantomlib.critical.search import critical_rates
from phantomlib.critical.step_zero import velocity
from phantomlib.dataset.scan import scan as dataset_scan
from phantomlib.diagnosis import diagnose
from phantomlib.engine.finetune import chunk_size, finetune, trainable
from phantomlib.engine.recipe import Recipe
from phantomlib.engine.recorder import Recorder
from phantomlib.models import language_model
from phantomlib.models.language_model import LanguageModel
from phantomlib.runs.store import Store

STEPS = 20
RATE = {"sgd": 1e-5, "adam": 1e-6}  # small, so that no replica diverges
BRACKET = 0.005
SLOW = 2e7  # parameters from which on a step takes seconds
DECADES = 2  # of the grid around a critical learning rate of which only the order of magnitude is known


def spread(contexts: list, replicas: int) -> tuple[list, int]:
    """Contexts and rates for each that make about this many replicas: ``contexts * rates``."""
    used = contexts[: min(len(contexts), replicas)]
    return used, math.ceil(replicas / len(used))


def extent(model: LanguageModel) -> tuple[int, int]:
    """Steps and replicas of a measurement that does not vary them; fewer for a large model, whose steps take seconds."""
    return (STEPS, 32) if model.n_parameters < SLOW else (4, 4)


def counts(name: str) -> list[int]:
    """Numbers of replicas to measure; a large model is advanced a few at a time, so more of them cost in proportion."""
    return [1, 4] if name in ("gpt2-small", "gpt2-medium") else [1, 8, 32, 128]


def throughput(name: str, device: str, counts: list[int], repeats: int) -> list[dict]:
    """Replica-steps per second, of the engine and of both alternatives, over replicas, methods and optimisers."""
    model = load(name, device)
    contexts, rows = contexts_of(model), []
    steps, _ = extent(model)
    for method, optimizer in itertools.product(("full", "lora"), ("sgd", "adam")):
        recipe = Recipe(optimizer=optimizer, method=method, steps=steps)
        for count in counts:
            used, rates = spread(contexts, count)
            learning_rates = [RATE[optimizer] * (1 + i / 100) for i in range(rates)]
            contenders = {
                "engine": partial(finetune, model, used, learning_rates, recipe),
                "plain loop": partial(baseline.plain_loop, model, contexts[0], RATE[optimizer], recipe),
                "fused loop": partial(baseline.plain_loop, model, contexts[0], RATE[optimizer], recipe, fused=True),
                "Trainer": partial(baseline.trainer_loop, model, contexts[0], RATE[optimizer], recipe),
            }
            seconds = measure.in_turn(contenders, repeats)
            replicas = len(used) * rates
            per = {k: [t / (replicas if k == "engine" else 1) / steps for t in v] for k, v in seconds.items()}
            row = {
                "model": name,
                "parameters": model.n_parameters,
                "method": method,
                "optimizer": optimizer,
                "replicas": replicas,
            }
            row |= {f"{k} (1/s)": measure.middle([1 / x for x in v]) for k, v in per.items()}
            row |= {
                f"against {k}": measure.ratio(per["engine"], per[k]) for k in ("plain loop", "fused loop", "Trainer")
            }
            rows.append(row)
    return rows


def size(name: str, device: str, repeats: int) -> list[dict]:
    """Seconds per replica-step at the size of the fetched models, against loops that record the same or nothing.

    Runs are as long as those of a search, and everybody's include the copying of the model. Under Adam the loops use
    torch's fused optimiser.
    """
    model = load(name, device)
    context, rows, steps = first_context(model), [], Recipe().steps
    few = 4 if model.n_parameters < 2e8 else 2
    for optimizer in ("sgd", "adam"):
        recipe, fused = Recipe(optimizer=optimizer, steps=steps), optimizer == "adam"
        loop = partial(baseline.plain_loop, model, context, RATE[optimizer], recipe, fused=fused)
        contenders = {
            count: partial(finetune, model, [context], [RATE[optimizer] * (1 + i / 100) for i in range(count)], recipe)
            for count in (1, few)
        } | {"recording the same": loop, "recording nothing": partial(loop, record=False)}
        seconds = measure.in_turn(contenders, repeats)
        for count in (1, few):
            each = [t / count for t in seconds[count]]
            rows.append({
                "model": name, "parameters": model.n_parameters, "optimizer": optimizer, "replicas": count,
                "steps": steps,
                "seconds per replica-step": measure.middle([t / steps for t in each]),
                "against a loop recording nothing": measure.ratio(each, seconds["recording nothing"]),
                "against a loop recording the same": measure.ratio(each, seconds["recording the same"]),
            })  # fmt: skip
    return rows


def diagnosis(name: str, device: str, repeats: int) -> list[dict]:
    """Seconds of ``diagnose`` once the model is in memory, and a yardstick.

    The yardstick is not a bound: as many steps as there are backward passes, of a fused loop that records nothing.
    """
    model, recipe = (
        replace(load(name, device), tokenizer=language_model.load("zoo:gpt2-s").tokenizer),
        Recipe(steps=STEPS),
    )
    context, short = first_context(model), replace(recipe, steps=6)
    with patch("torch.autograd._engine_run_backward", wraps=torch.autograd._engine_run_backward) as counted:
        diagnose(model, context, recipe)
    contenders = {
        "diagnosis": partial(diagnose, model, context, recipe),
        "loop": partial(baseline.plain_loop, model, context, RATE["adam"], short, record=False, fused=True),
    }
    seconds, passes = measure.in_turn(contenders, repeats), counted.call_count
    loop = [t * passes / short.steps for t in seconds["loop"]]
    row = {"model": name, "seconds": measure.middle(seconds["diagnosis"]), "backward passes": passes}
    ratio = measure.ratio(seconds["diagnosis"], loop)
    return [row | {"same steps of the loop (s)": measure.middle(loop), "loop over diagnosis": ratio}]


def scan(name: str, device: str, repeats: int) -> list[dict]:
    """Seconds of a scan of 64 rows of 16 tokens once the model is in memory, and of one epoch of training on them."""
    model, rows = load(name, device), []
    model = replace(model, tokenizer=language_model.load("zoo:gpt2-s").tokenizer)
    data = rows_of(model)
    for method in ("full", "lora"):
        recipe = Recipe(method=method)
        contenders = {
            "scan": partial(dataset_scan, model, data, recipe),
            "epoch": partial(baseline.epoch, model, data, RATE["adam"], recipe),
        }
        seconds = measure.in_turn(contenders, repeats)
        row = {"model": name, "parameters": model.n_parameters, "method": method}
        row |= {f"{name} (s)": measure.middle(taken) for name, taken in seconds.items()}
        rows.append(row | {"epochs": measure.ratio(seconds["epoch"], seconds["scan"])})
    return rows


def search(name: str, device: str, repeats: int) -> list[dict]:
    """Time to a bracket of all contexts against a dense grid (a part of it run, the rest by rule of three) and bisection."""
    model = load(name, device)
    contexts, rows = contexts_of(model), []
    points = math.ceil(DECADES * math.log(10) / math.log1p(BRACKET))
    for optimizer in ("sgd", "adam"):
        recipe = Recipe(optimizer=optimizer, steps=STEPS)
        found = {}

        def ours(recipe=recipe, found=found):
            with tempfile.TemporaryDirectory() as folder:
                found["ours"] = critical_rates(Store(folder), model, contexts, recipe, tolerance=BRACKET)

        def halving(recipe=recipe, found=found):
            ends = [float(x) for x in found["ours"].critical_rate]
            found["bisection"] = [
                baseline.bisection(model, c, recipe, x * 10 ** (-DECADES / 2), x * 10 ** (DECADES / 2), BRACKET)
                for c, x in zip(contexts, ends, strict=True)
            ]

        def part_of_grid(recipe=recipe, found=found):
            for c, x in zip(contexts, found["ours"].critical_rate.values, strict=True):
                baseline.plain_loop(model, c, float(x), recipe)

        seconds = measure.in_turn({"search": ours, "bisection": halving, "grid": part_of_grid}, repeats)
        seconds["grid"] = [t * points for t in seconds["grid"]]
        runs = found["ours"].n_runs.values
        halvings = [b[2] for b in found["bisection"]]
        agree = [
            abs(math.log(math.sqrt(b[0] * b[1]) / float(x))) <= 1.5 * BRACKET
            for b, x in zip(found["bisection"], found["ours"].critical_rate.values, strict=True)
        ]
        rows.append({
            "model": name, "optimizer": optimizer, "contexts": len(contexts), "bracket": BRACKET,
            "converged": int(found["ours"].converged.sum()), "same rate as bisection": sum(agree),
            "runs each": float(runs.mean()), "grid points": points, "halvings": float(np.mean(halvings)),
            "replica-steps saved": points / float(runs.mean()),
            "search (s)": measure.middle(seconds["search"]), "bisection (s)": measure.middle(seconds["bisection"]),
            "grid (s)": measure.middle(seconds["grid"]),
            "against grid": measure.ratio(seconds["search"], seconds["grid"]),
            "against bisection": measure.ratio(seconds["search"], seconds["bisection"]),
        })  # fmt: skip
    return rows


def recording(name: str, device: str, repeats: int) -> list[dict]:
    """What recording everything costs: a step with it against one that keeps the logit gap only, in turn within a run."""
    model = load(name, device)
    contexts, rows = contexts_of(model), []
    steps, replicas = extent(model)
    used, rates = spread(contexts, replicas)
    everything, started = Recorder.record, []

    def by_turns(self, step, logits, loss):
        measure.wait_for_device()
        started.append((step, time.perf_counter()))
        if step % 2:
            everything(self, step, logits, loss)
        else:
            z = logits.gather(1, self.pair)
            self.fields["logit_gap"][:, step] = z[:, 0] - z[:, 1]

    for method, optimizer in itertools.product(("full", "lora"), ("sgd", "adam")):
        recipe, shares, passes = Recipe(optimizer=optimizer, method=method, steps=steps), [], []
        E = model.readout.detach().repeat(len(used) * rates if method == "full" else 1, 1, 1)
        for round_ in range(repeats + 1):
            started.clear()
            with patch.object(Recorder, "record", by_turns):
                finetune(model, used, [RATE[optimizer]] * rates, recipe)
            took = [(a, t - s) for (a, s), (b, t) in itertools.pairwise(started) if b == a + 1 > 2]
            share = statistics.median(  # against both neighbours, so that a machine that slows down tells nothing
                2 * t / (before + after) - 1
                for (first, before), (step, t), (last, after) in zip(took, took[1:], took[2:], strict=False)
                if step % 2 and last - first == 2
            )
            once = statistics.median(measure.in_turn({"reading": E.sum}, 5)["reading"])
            without = statistics.median(t for step, t in took if step % 2 == 0)
            if round_:  # the first round warms up
                shares, passes = [*shares, share], [*passes, once / without]
        row = {"model": name, "method": method, "optimizer": optimizer, "replicas": len(used) * rates}
        rows.append(row | {"overhead": measure.middle(shares), "one reading of E": measure.middle(passes)})
    return rows


def predictors(name: str, device: str, repeats: int) -> list[dict]:
    """Seconds to predict the critical rates of all contexts at step 0, against measuring them."""
    model = load(name, device)
    contexts, rows = contexts_of(model), []
    for optimizer in ("sgd", "adam"):
        recipe = Recipe(optimizer=optimizer, steps=STEPS)

        def bracket(recipe=recipe):
            with tempfile.TemporaryDirectory() as folder:
                critical_rates(Store(folder), model, contexts, recipe, tolerance=BRACKET)

        def ladder(recipe=recipe):
            with tempfile.TemporaryDirectory() as folder:
                predict_critical_rates(Store(folder), model, contexts, recipe)

        contenders = {
            "velocity": lambda r=recipe: velocity(model, contexts, r),
            "all predictors": ladder,
            "bracket": bracket,
        }
        seconds = measure.in_turn(contenders, repeats)
        row = {"model": name, "optimizer": optimizer, "contexts": len(contexts)}
        row |= {f"{k} (s)": measure.middle(v) for k, v in seconds.items()}
        row |= {
            f"{k}, times faster": measure.ratio(seconds[k], seconds["bracket"]) for k in ("velocity", "all predictors")
        }
        rows.append(row)
    return rows


def memory(name: str, device: str) -> list[dict]:
    """Peak memory and seconds of what a chapter asks for, each in a process of its own."""
    rows = []
    for task in needs.TASKS:
        command = [sys.executable, "-m", "benchmarks.needs", name, task, device]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append({"model": name, "task": task} | json.loads(done.stdout.splitlines()[-1]))
    return rows


def growth(device: str, repeats: int = 1) -> list[dict]:
    """Seconds against the number of replicas, steps, vocabulary and size of the model; everything else fixed."""
    model = load("gpt2-s", device)
    contexts, rows = contexts_of(model), []

    def add(what, value, work, function):
        seconds = measure.middle(measure.in_turn({"it": function}, repeats)["it"])
        rows.append(
            {
                "of": what,
                "value": value,
                "replica-steps": work,
                "seconds": seconds,
                "ms per replica-step": 1000 * seconds[0] / work,
            }
        )

    for replicas in (16, 64, 256, 1024, 4096):
        used, rates = contexts[:8], replicas // 8
        grid = [RATE["adam"] * (1 + i / rates) for i in range(rates)]
        add("replicas", replicas, replicas * 4, lambda u=used, g=grid: finetune(model, u, g, Recipe(steps=4)))
    for steps in (5, 10, 20, 40, 80):
        add(
            "steps",
            steps,
            32 * steps,
            lambda s=steps: finetune(model, contexts[:8], [RATE["adam"]] * 4, Recipe(steps=s)),
        )
    for name in ("gpt2-s", "gpt2-m", "gpt2-l"):
        other = load(name, device)
        fitting = contexts_of(other)[:8]
        add(
            "parameters",
            other.n_parameters,
            32 * 5,
            lambda m=other, f=fitting: finetune(m, f, [RATE["adam"]] * 4, Recipe(steps=5)),
        )
    for tokens in (1000, 2000, 4000, 8000, 16000):
        other = _with_vocabulary(model, tokens)
        add(
            "vocabulary", tokens, 32 * 5, lambda m=other: finetune(m, contexts[:8], [RATE["adam"]] * 4, Recipe(steps=5))
        )
    return rows


def _with_vocabulary(model: LanguageModel, tokens: int) -> LanguageModel:
    """The same architecture with another number of tokens; further ones repeat rows of the readout."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**(model.module.config.to_dict() | {"vocab_size": tokens}))
    module = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    E = model.readout.detach()
    values = model.module.state_dict()
    rows = torch.arange(tokens) % len(E)
    shapes = module.state_dict()
    values = {k: v[rows] if v.shape[0] == len(E) and shapes[k].shape[0] == tokens else v for k, v in values.items()}
    module.load_state_dict(values)
    return replace(model, module=module.to(model.device).eval().requires_grad_(False), fingerprint=f"{tokens} tokens")


def chunks(name: str, device: str, repeats: int) -> list[dict]:
    """Milliseconds per replica-step against the number of replicas advanced together."""
    model = load(name, device)
    contexts, rows = contexts_of(model), []
    steps = 5 if model.n_parameters < SLOW else 2
    sizes = [n for n in (1, 2, 4, 8, 16, 32, 64) if n * model.n_parameters < 5e8]
    for optimizer in ("sgd", "adam"):
        recipe = Recipe(optimizer=optimizer, steps=steps)
        seconds = measure.in_turn(
            {n: partial(finetune, model, *_sweep(contexts, n, optimizer), recipe, chunk=n) for n in sizes}, repeats
        )
        for n in sizes:
            used, learning_rates = _sweep(contexts, n, optimizer)
            work = len(used) * len(learning_rates) * steps
            row = {"model": name, "parameters": model.n_parameters, "optimizer": optimizer, "chunk": n}
            rows.append(row | {"ms per replica-step": [1000 * t / work for t in measure.middle(seconds[n])]})
    return rows


def _sweep(contexts: list, replicas: int, optimizer: str) -> tuple[list, list[float]]:
    used, rates = spread(contexts, replicas)
    return used, [RATE[optimizer] * (1 + i / 100) for i in range(rates)]


def cores(repeats: int) -> list[dict]:
    """One worker process against two, on a local Dask cluster: 256 replicas of the smallest model."""
    from distributed import LocalCluster

    from phantomlib.engine import cluster

    model = load("gpt2-s", "cpu")
    contexts = contexts_of(model)[:8]
    recipe, rates = Recipe(steps=STEPS), [RATE["adam"] * (1 + i / 100) for i in range(32)]
    contenders, open_clusters = {}, []
    for workers in (1, 2):
        local = LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0")
        open_clusters.append(local)

        def sweep(address=local.scheduler_address):
            with patch.dict(os.environ, {cluster.ENVIRONMENT: address}):
                finetune(model, contexts, rates, recipe, chunk=16, run=cluster.run_there)

        contenders[workers] = sweep
    seconds = measure.in_turn(contenders, repeats)
    for local in open_clusters:
        local.close()
    row = {
        "model": "gpt2-s",
        "replicas": 256,
        "one worker (s)": measure.middle(seconds[1]),
        "two workers (s)": measure.middle(seconds[2]),
    }
    return [row | {"times faster": measure.ratio(seconds[2], seconds[1])}]


def book() -> list[dict]:
    """The whole book from an empty store, and once more with everything there: seconds of every notebook and of the pages."""
    root = Path(__file__).resolve().parents[1]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("_toc.yml", "_config.yml", "book", "notebooks", "benchmarks", "results"):
            ignored = shutil.ignore_patterns("generated", "__pycache__")
            (shutil.copytree if (root / name).is_dir() else shutil.copy)(
                root / name, Path(folder) / name, **({"ignore": ignored} if (root / name).is_dir() else {})
            )
        for state in ("cold", "warm"):
            started = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "phantombook.cli", "book"], cwd=folder, check=True, stdout=subprocess.DEVNULL
            )
            rows.append({"run": state, "notebook": "all, and the pages", "seconds": time.perf_counter() - started})
            if state == "cold":
                spent = 0.0
                published = {path.name for path in (root / "results").glob("*.nc")}
                for path in (Path(folder) / "runs").glob("*.nc"):
                    if path.name not in published:
                        with netCDF4.Dataset(path) as run:
                            spent += float(run.seconds)
                rows.append({"run": state, "notebook": "fine-tuning, summed over processes", "seconds": spent})
        times = json.loads((Path(folder) / "book/generated/run_times.json").read_text(encoding="utf-8"))
    notebooks = [
        {"run": "cold", "notebook": name, "seconds": found["zoo"]}
        for name, found in sorted(times.items())
        if "zoo" in found
    ]
    return rows + notebooks


def floor(name: str, device: str, repeats: int) -> list[dict]:
    """Work of a step, counted, and which share of the machine's measured peak it reaches.

    Operations: of forward and backward pass, by torch's own counter, plus those of the update (2 of SGD, 12 of Adam for every
    parameter). Bytes: every trainable tensor is read in the forward and in the backward pass; the update reads and writes it and,
    under Adam, both moments; its gradient need never leave the cache. Activations are left out: the floor is below the truth.
    """
    model = load(name, device)
    contexts, rows = contexts_of(model), []
    best = measure.peak(model.device)
    steps, replicas = extent(model)
    used, rates = spread(contexts, replicas)
    chunk = chunk_size(model, contexts, Recipe(steps=steps))
    for optimizer, (touches, operations) in {"sgd": (4, 2), "adam": (8, 12)}.items():
        recipe = Recipe(optimizer=optimizer, steps=steps)
        module, _ = trainable(model, recipe, 0)
        ids = torch.tensor([contexts[0].prompt_ids], device=model.device)
        with FlopCounterMode(display=False) as counter:
            module.requires_grad_(True)
            module(ids, use_cache=False, logits_to_keep=1).logits.log_softmax(-1)[0, -1, 0].backward()
            module.zero_grad()
            module.requires_grad_(False)
        flops = counter.get_total_flops() + operations * model.n_parameters
        traffic = touches * 4 * model.n_parameters
        seconds = measure.in_turn(
            {"it": lambda r=recipe: finetune(model, used, [RATE[r.optimizer]] * rates, r)}, repeats
        )["it"]
        per_step = measure.middle(seconds)[0] / (len(used) * rates * steps)
        bound = max(flops / best["flops"], traffic / best["bytes"])
        rows.append({
            "model": name, "optimizer": optimizer, "replicas": len(used) * rates, "chunk": chunk,
            "MFLOP": flops / 1e6, "MB": traffic / 1e6, "peak GFLOP/s": best["flops"] / 1e9, "peak GB/s": best["bytes"] / 1e9,
            "measured (ms)": 1000 * per_step, "floor (ms)": 1000 * bound, "share of floor": bound / per_step,
            "bound by": "memory" if traffic / best["bytes"] > flops / best["flops"] else "arithmetic",
        })  # fmt: skip
    return rows
