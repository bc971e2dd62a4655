"""Every way to a false "reproduced" that we know of, and that it is withheld."""

import json
import random
import shutil

import pytest
import xarray as xr

from phantombook.ledger import claims
from phantombook.ledger.measurements import Recording, complete
from phantomlib import files


def flip_a_bit_of_a_number(case):
    whole = bytearray(case.run().read_bytes())
    place = whole.find(xr.load_dataset(case.run()).logit_gap.values[0, 0, 0].tobytes())
    assert place > 0
    whole[place] ^= 1
    case.run().write_bytes(whole)


def start_again_while_it_runs(case):
    case.record(0.001, through=False)
    Recording(case.store, case.source(), case.store.root)  # another process, which fails
    complete(case.scratch)  # and the first comes to its end


def no_longer_record(case):
    lines = case.notebook.read_text().splitlines(True)
    case.notebook.write_text("".join(line for line in lines if "record" not in line))


OLD = {"values": {"x": 0.01}, "interval": None, "n": {}, "runs": ["0123456789ab"], "detail": {}}
PRIVATE = {"size_factor": 5.0}
FORGED = [  # with a fitting checksum
    *({"complete": value} for value in (False, "yes")),
    *({"runs": value} for value in ([], ["*"], ["????????????"], ["[0-9a-f]" * 12], ["0123456789ab"], [""])),
    *({"runs": value} for value in ([None], None, "0123456789ab")),
    *({"values": value} for value in ({}, None, {"coefficient_of_variation": None}, [0.01])),
    *({"n": value} for value in ({}, {"architectures": "5", "contexts": 10})),
    *({"interval": 3}, {"detail": 3}, {"key": None}, {"experiment": {}}, {"measurements": {}}),
]
NOT_TESTED = {
    "missing": lambda case: case.path.unlink(),
    "cut off": lambda case: case.path.write_text("{"),
    "a value edited": lambda case: case.path.write_text(case.path.read_text().replace("0.01", "0.02")),
    "without checksum": lambda case: case.path.write_text(json.dumps(files.read_json(case.path))),
    "an old format": lambda case: case.path.write_text(json.dumps(OLD)),
    "an empty run": lambda case: case.run().write_bytes(b""),
    "a run that is a folder": lambda case: (path := case.run(), path.unlink(), path.mkdir()),
    "a flipped bit of a run": flip_a_bit_of_a_number,
    "another run under its name": lambda case: shutil.copy(case.run(2), case.run(0)),
    "a removed run": lambda case: case.run().unlink(),
    "a copy of a private experiment": lambda case: shutil.copy(case.record(0.001, **PRIVATE), case.record(0.9)),
    "of the other optimiser": lambda case: case.record(0.001, "sgd"),
    "of another claim": lambda case: case.record(0.001, claim="C10"),
    "started again but failed": lambda case: Recording(case.store, case.source(), case.scratch),
    "recorded but failed later": lambda case: case.record(0.001, through=False),
    "started again while it ran": start_again_while_it_runs,
} | {f"forged {changes}"[:60]: lambda case, changes=changes: case.forge(**changes) for changes in FORGED}
STALE = {
    "no longer recorded": no_longer_record,
    "notebook gone": lambda case: case.notebook.unlink(),
    "notebook unreadable": lambda case: case.notebook.write_text("def f(:"),
    "no key": lambda case: case.forge(key=""),
    "another key": lambda case: case.forge(key="0" * 64),
}


@pytest.mark.parametrize("way", [*NOT_TESTED, *STALE])
def test_no_way_leads_to_a_false_verdict(case, way):
    assert case.verdict().status == claims.REPRODUCED
    (NOT_TESTED | STALE)[way](case)
    verdict = case.verdict()
    assert verdict.status == (claims.STALE if way in STALE else claims.NOT_TESTED) and verdict.reason
    assert way not in STALE or "run notebook 08 again" in verdict.reason


@pytest.mark.parametrize(
    "module",
    [
        *("transition/jumps.py", "engine/optimizer.py", "models/zoo_models.py", "contexts.yaml"),
        *("progress.py", "engine/cluster.py", "__init__.py"),  # whatever runs in the kernel can change its numbers
        *("../phantombook/execution.py", "../phantombook/preloaded_kernel.py", "../phantombook/plan.py"),
    ],
)
def test_other_code_makes_a_verdict_stale(package, case, module):
    path = package / "phantomlib" / module
    path.write_text(path.read_text() + "\n\nMORE = 1\n")
    assert case.verdict().status == claims.STALE


def test_a_private_experiment_leaves_the_published_verdict_alone(case):
    private = case.record(0.9, size_factor=5.0)
    assert case.verdict().status == claims.REPRODUCED and private != case.path
    assert case.verdict(size_factor=5.0).status == claims.NOT_REPRODUCED
    case.record(0.01, "sgd", size_factor=5.0)
    assert case.verdict(optimizer="sgd", size_factor=5.0).status == claims.REPRODUCED
    assert case.verdict(optimizer="sgd").status == claims.NOT_TESTED


def test_words_do_not_make_a_verdict_stale(case):
    code = case.notebook.read_text()
    case.notebook.write_text(f"# %% [markdown]\n# More words.\n\n# %%\n{code}# and a comment\n")
    assert case.verdict().status == claims.REPRODUCED


def test_two_hundred_flipped_bits(case):
    """Of a measurement; what is still accepted has the same content."""
    path, source, before, accepted = case.path, case.source(), case.verdict(), 0
    whole = path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(whole)), 200):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        verdict = claims.judge(before.claim, case.store, source)
        if verdict.status != claims.NOT_TESTED:
            assert verdict == before
            accepted += 1
    assert accepted < 50


def test_each_run_is_looked_into_once(case, monkeypatch):
    from phantomlib.runs import run_file

    looked, real = [], run_file.read_patiently
    monkeypatch.setattr(run_file, "read_patiently", lambda path: looked.append(path) or real(path))
    for path in case.store.root.glob("*.nc"):
        path.touch()
    assert [case.verdict().status for _ in range(3)] == [claims.REPRODUCED] * 3
    assert sorted(looked) == sorted(case.run(i) for i in (0, 1))
