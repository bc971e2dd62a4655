"""The benchmarks measure what they say: the baselines do the same work; targets and plan follow from the figures."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny

from benchmarks import __main__ as bench
from benchmarks import baseline, measure, report
from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe
from phantomlib.engine.recorder import RECORDED
from phantomlib.errors import ParameterError


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_plain_loop_records_what_the_engine_records(method, optimizer, fused):
    model = tiny.model("GPTNeoX")
    context, recipe = tiny.contexts(model)[1], Recipe(optimizer=optimizer, method=method, steps=4)
    ours = finetune(model, [context], [0.01], recipe)
    loop = baseline.plain_loop(model, context, 0.01, recipe, fused=fused)
    for name in RECORDED:
        assert np.allclose(loop[name][0], ours[name].values[0, 0, 0], rtol=1e-8, atol=1e-10, equal_nan=True), name
    gap = baseline.plain_loop(model, context, 0.01, recipe, record=False)["logit_gap"]
    assert np.allclose(gap, loop["logit_gap"], atol=1e-12)


def test_bisection_brackets_the_boundary(monkeypatch):
    monkeypatch.setattr(baseline, "_overtakes", lambda model, context, rate, recipe: rate >= 0.0321)
    low, high, runs = baseline.bisection(None, None, None, 1e-3, 1.0, 0.005)
    assert low < 0.0321 <= high <= low * 1.005
    assert runs == 11  # halvings of log(1000) until it is below log(1.005)


def test_contenders_take_turns():
    order = []
    seconds = measure.in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3 and {k: len(v) for k, v in seconds.items()} == {"a": 2, "b": 2}
    assert measure.ratio([1, 2, 4], [3, 2, 20]) == (3, 1, 5)


def judged(*against):
    row = {"parameters": 5e5, "method": "full", "optimizer": "sgd", "replicas": 32, "against plain loop": [*against]}
    return report.reached({"throughput": {"rows": pd.DataFrame([row])}}).set_index("target").verdict


def test_targets_are_judged_by_the_worst_row():
    verdicts, slower = judged(4.0, 3.5, 5.0), judged(2.9, 2.0, 9.0)
    assert verdicts.iloc[0] == "reached" and verdicts.iloc[3] == "reached"
    assert (verdicts.drop(verdicts.index[[0, 3]]) == "not measured").all()
    assert slower.iloc[0] == "not reached" and slower.iloc[3] == "reached"


@pytest.mark.parametrize(
    "nothing, same, verdicts", [(1.1, 1.2, "reached, not reached"), (0.9, 1.4, "not reached, reached")]
)
def test_the_slowest_row_at_the_paper_s_size_counts(nothing, same, verdicts):
    columns = ["against a loop recording nothing", "against a loop recording the same"]
    rows = pd.DataFrame([[[2.0] * 3, [2.0] * 3], [[nothing] * 3, [same] * 3]], columns=columns)
    found = report.reached({"size": {"rows": rows}}).verdict
    assert ", ".join(found[["size", "size-recording"]]) == verdicts


def test_a_diagnosis_is_judged_by_the_slowest_model():
    rows = pd.DataFrame({"seconds": [[9.0, 8.0, 10.0], [21.0, 19.0, 30.0]]})
    assert report.reached({"diagnosis": {"rows": rows}}).verdict["diagnosis"] == "not reached"


def test_needs_at_another_size_follow_the_largest_model():
    rows = pd.DataFrame({
        "model": ["large", "large", "small"], "task": ["model", "run", "run"],
        "model (GiB)": [1.001, 1.0, 0.5], "beyond it (parameters)": [0.0, 4.0, 9.0],
    })  # fmt: skip
    needed = report.at_size({"memory": {"rows": rows}}, 2**28).set_index("task").GiB
    assert needed.to_dict() == {"model": 1.0, "run": 5.0}


def test_exponent_of_a_power_law():
    seconds = [[9.0] * 3, *([n**1.5] * 3 for n in (64.0, 256.0, 1024.0))]
    rows = pd.DataFrame({"of": "replicas", "value": [1, 64, 256, 1024], "seconds": seconds})
    assert report.exponent(rows, "replicas", 64) == pytest.approx(1.5)


def test_cells_for_people():
    rows = pd.DataFrame([{"rounds": [2.0, 1.0, 3.0], "one round": [2.0] * 3, "number": 2.0, "name": "gpt2-s"}])
    assert report.for_people(rows).iloc[0].tolist() == ["2 (1 to 3)", "2", "2", "gpt2-s"]


def test_results_that_are_none(tmp_path):
    assert report.read_results(tmp_path / "none.json") is None
    (tmp_path / "bad.json").write_text("[1, 2")
    with pytest.raises(ParameterError, match="make bench"):
        report.read_results(tmp_path / "bad.json")
    cores = {"machine": {}, "seconds": 1, "rows": [{"times faster": [1.8, 1.7, 1.9]}]}
    (tmp_path / "good.json").write_text(json.dumps({"cores": cores}))
    found = report.reached(report.read_results(tmp_path / "good.json")).set_index("target")
    assert found.verdict.to_dict()["times faster with a second core"] == "reached"


def test_figures_that_cannot_be_written_leave_the_earlier_ones(tmp_path, monkeypatch):
    def full(self, text, **_):
        self.open("w").write(text[:10])
        raise OSError(28, "No space left on device")

    (tmp_path / "cpu.json").write_text("{}")
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    monkeypatch.setattr(bench.suites, "growth", lambda device: [{"x": 1}])
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(Path, "write_text", full)
        bench.main(["growth"], "cpu", 1, None, None)
    assert (tmp_path / "cpu.json").read_text() == "{}"
    bench.main(["growth"], "cpu", 1, None, None)
    assert json.loads((tmp_path / "cpu.json").read_text())["growth"]["rows"] == [{"x": 1}]
