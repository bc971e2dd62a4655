"""``make bench``: measure, print tables, write ``benchmarks/results/NAME.json`` for the book."""

import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer

from benchmarks import measure, suites
from benchmarks.models import LARGE
from phantomlib.files import write_text

ZOO = ("gpt2-s", "gpt2-m", "gpt2-l", "neox-s", "neox-m")
ONCE = ("memory", "growth", "book")  # suites that measure everything once
RESULTS = Path(__file__).parent / "results"


def main(
    only: Annotated[list[str] | None, typer.Option(help="Suites to run; the others keep their last figures.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    repeats: Annotated[int, typer.Option(help="Rounds in which all contenders take their turn.")] = 3,
    models: Annotated[
        list[str] | None, typer.Option(help="Zoo names, gpt2-small, gpt2-medium (random weights).")
    ] = None,
    replicas: Annotated[list[int] | None, typer.Option(help="Numbers of replicas of the suite throughput.")] = None,
):
    """Measure the engine side by side with what one would do without it."""
    torch.set_num_threads(1)
    names = models or ([*ZOO, "gpt2-small"] if device == "cpu" else ["gpt2-s", "gpt2-small", "gpt2-medium"])
    small = [name for name in names if name in ZOO]
    known = {
        "throughput": lambda: [
            row for name in names for row in suites.throughput(name, device, replicas or suites.counts(name), repeats)
        ],
        "recording": lambda: [row for name in names for row in suites.recording(name, device, repeats)],
        "size": lambda: [row for name in LARGE for row in suites.size(name, device, repeats)],
        "diagnosis": lambda: [row for name in LARGE for row in suites.diagnosis(name, device, repeats)],
        "scan": lambda: [row for name in ("gpt2-s", *LARGE) for row in suites.scan(name, device, repeats)],
        "search": lambda: [row for name in small for row in suites.search(name, device, repeats)],
        "predictors": lambda: [row for name in small for row in suites.predictors(name, device, repeats)],
        "chunks": lambda: [row for name in names for row in suites.chunks(name, device, repeats)],
        "cores": lambda: suites.cores(repeats),
        "floor": lambda: [row for name in names for row in suites.floor(name, device, repeats)],
        "memory": lambda: [row for name in LARGE for row in suites.memory(name, device)],
        "growth": lambda: suites.growth(device),
        "book": lambda: suites.book(),
    }
    chosen = only or [name for name in known if not (device != "cpu" and name in ("book", "cores"))]
    for name in set(chosen) - set(known):
        raise typer.BadParameter(f"there is no suite '{name}'; choose among {', '.join(known)}.")
    path = RESULTS / f"{device}.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in chosen:
        print(f"\n{name} ...", flush=True)
        started = time.perf_counter()
        rows = known[name]()
        results[name] = {
            "machine": measure.machine(torch.device(device)),
            "seconds": time.perf_counter() - started,
            "rounds": 1 if name in ONCE else repeats,
            "rows": rows,
        }
        print(as_table(rows), flush=True)
        RESULTS.mkdir(exist_ok=True)
        write_text(path, json.dumps(results, indent=1))  # after every suite: nothing is lost
    print(f"\nWritten: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


def as_table(rows: list[dict]) -> str:
    """Rows for people: medians with their range."""
    frame = pd.DataFrame([{k: _short(v) for k, v in row.items()} for row in rows])
    return frame.to_markdown(index=False, disable_numparse=True)


def _short(value) -> str:
    if isinstance(value, list | tuple):
        return f"{value[0]:.3g} ({value[1]:.3g} to {value[2]:.3g})"
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)


if __name__ == "__main__":
    typer.run(main)
