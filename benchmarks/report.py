"""Results of the benchmarks (``make bench``) for the page on speed: tables, and targets that were set beforehand."""

import json
import math
from pathlib import Path

import pandas as pd

from phantomlib.errors import ParameterError

TARGETS = {  # name -> (quantity, direction, threshold, suite); the thresholds stood before the first measurement
    "sgd-small": (
        "smallest ratio to the plain loop's speed, 30 to 40 replicas, SGD, below 1 M parameters",
        "at least",
        3.0,
        "throughput",
    ),
    "adam-small": (
        "smallest ratio to the plain loop's speed, 30 to 40 replicas, Adam, below 1 M parameters",
        "at least",
        2.0,
        "throughput",
    ),
    "two-million": (
        "smallest ratio to the plain loop's speed, 30 to 40 replicas, about 2 M parameters",
        "at least",
        1.5,
        "throughput",
    ),
    "anywhere": ("smallest ratio to the plain loop's speed in the whole table", "at least", 1.0, "throughput"),
    "size": (
        "smallest ratio to the speed of a loop that records nothing, 135 and 268 M parameters",
        "at least",
        1.0,
        "size",
    ),
    "size-recording": (
        "smallest ratio to the speed of a loop that records the same, 135 and 268 M parameters",
        "at least",
        1.3,
        "size",
    ),
    "diagnosis": ("largest time of a diagnosis (s), 135 and 268 M parameters", "at most", 20.0, "diagnosis"),
    "scan": ("largest time of a scan of 64 rows (epochs of a fused loop over them), full", "at most", 1.5, "scan"),
    "scan-memory": ("largest memory of a scan of 64 rows (GiB), 135 M parameters", "at most", 3.1, "memory"),
    "cores": ("times faster with a second core", "at least", 1.6, "cores"),
    "fewer-steps": ("smallest ratio of a dense grid's replica-steps to the search's", "at least", 200.0, "search"),
    "grid-time": ("smallest ratio of a dense grid's time to the search's", "at least", 150.0, "search"),
    "bisection-time": ("smallest ratio of bisection's time to the search's", "at least", 4.0, "search"),
    "recording": ("largest share that recording adds to a step, 30 to 40 replicas", "at most", 0.1, "recording"),
    "linear": ("exponent of time against replicas, 64 to 4096", "at most", 1.05, "growth"),
    "book": ("minutes of the whole book, cold, two cores", "at most", 8.0, "book"),
}


def read_results(path: str | Path) -> dict | None:
    """Results of one machine by suite: ``machine``, ``seconds`` and ``rows``; None if there is no such file.

    Raises:
        ParameterError: the file is not one that ``make bench`` wrote.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: suite | {"rows": pd.DataFrame(suite["rows"])} for name, suite in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ParameterError(f"'{path}' holds no benchmark results; write it anew with 'make bench'.") from None


def median(cell) -> float:
    """The median of a measured cell ``[median, least, greatest]``; other numbers as they are."""
    return cell[0] if isinstance(cell, list | tuple) else cell


def for_people(rows: pd.DataFrame) -> pd.DataFrame:
    """Measured cells as text, "median (least to greatest)", or the one value of a single round."""

    def text(cell):
        if isinstance(cell, list | tuple) and cell[1] < cell[2]:
            return f"{cell[0]:.3g} ({cell[1]:.3g} to {cell[2]:.3g})"
        cell = median(cell)
        return f"{cell:.3g}" if isinstance(cell, float) else cell

    return rows.map(text)


def reached(results: dict) -> pd.DataFrame:
    """One row per target, by its name in ``TARGETS``: quantity, measured value, threshold, and whether it is reached.

    The verdict is "not measured" where there are no figures.
    """
    rows = {}
    for name, (quantity, direction, threshold, suite) in TARGETS.items():
        value = _measured(name, results[suite]["rows"]) if suite in results else math.nan
        met = value >= threshold if direction == "at least" else value <= threshold
        verdict = "not measured" if math.isnan(value) else "reached" if met else "not reached"
        rows[name] = {
            "target": quantity,
            "measured": "" if math.isnan(value) else f"{value:.3g}",
            "needed": f"{direction} {threshold:g}",
            "verdict": verdict,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _measured(name: str, rows: pd.DataFrame) -> float:
    """The value of one target from its suite's rows; nan if no row counts for it."""
    if name in ("size", "size-recording"):
        against = "the same" if name == "size-recording" else "nothing"
        return float(rows[f"against a loop recording {against}"].map(median).min())
    if name == "diagnosis":
        return float(rows["seconds"].map(median).max())
    if name == "scan":
        return float(rows[rows["method"] == "full"]["epochs"].map(median).max())
    if name == "scan-memory":
        scans = rows[rows["task"].str.startswith("scan") & (rows["model"] == "llama-135m")]
        return float(scans["peak (GiB)"].max())
    if name == "cores":
        return median(rows["times faster"].iloc[0])
    if name == "book":
        whole = rows[(rows["run"] == "cold") & (rows["notebook"] == "all, and the pages")]
        return float(whole["seconds"].iloc[0]) / 60
    if name == "linear":
        return exponent(rows, "replicas", 64)
    if name == "recording":
        return float(rows["overhead"].map(median).max())
    if name == "fewer-steps":
        return float(rows["replica-steps saved"].min())
    if name in ("grid-time", "bisection-time"):
        return float(rows[f"against {name.removesuffix('-time')}"].map(median).min())
    full = rows[rows["method"] == "full"] if name != "anywhere" else rows
    near32 = full["replicas"].between(30, 40)
    chosen = {
        "sgd-small": near32 & (full["parameters"] < 1e6) & (full["optimizer"] == "sgd"),
        "adam-small": near32 & (full["parameters"] < 1e6) & (full["optimizer"] == "adam"),
        "two-million": near32 & full["parameters"].between(1.5e6, 3e6),
        "anywhere": full["parameters"] > 0,
    }[name]
    return float(full[chosen]["against plain loop"].map(median).min())


def exponent(rows: pd.DataFrame, of: str, least: float = 0) -> float:
    """Slope of log time against log value in the suite ``growth``, from ``least`` on: 1 is linear."""
    import numpy as np

    part = rows[(rows["of"] == of) & (rows["value"] >= least)]
    return float(np.polyfit(np.log(part["value"]), np.log(part["seconds"].map(median)), 1)[0])


def at_size(results: dict, parameters: int) -> pd.DataFrame:
    """What each task of the suite ``memory`` needs at another number of parameters, by rule of three from the largest model.

    Columns: ``task``, ``GiB``.
    """
    rows = results["memory"]["rows"]
    rows = rows[rows["model"] == rows.loc[rows["model (GiB)"].idxmax(), "model"]]  # the GiB are measured, and vary
    weights = 4 * parameters / 2**30
    return pd.DataFrame({"task": rows["task"], "GiB": weights * (1 + rows["beyond it (parameters)"])})
