"""Every way to a false "reproduced" that we know of, and that it is withheld."""

import json
import random
import shutil

import pytest
import xarray as xr

from phantombook.ledger import claims
from phantombook.ledger.measurements import Recording, complete
from phantomlib import files


def missing(case):
    case.path.unlink()


def cut_off(case):
    case.path.write_text("{")


def edit_value(case):
    case.path.write_text(case.path.read_text().replace("0.01", "0.02"))


def drop_the_checksum(case):
    case.path.write_text(json.dumps(files.read_json(case.path)))


def old_format(case):
    content = {"values": {"x": 0.01}, "interval": None, "n": {}, "runs": case.runs, "detail": {}}
    case.path.write_text(json.dumps(content))


def empty_run(case):
    case.run().write_bytes(b"")


def run_is_a_folder(case):
    path = case.run()
    path.unlink()
    path.mkdir()


def flipped_run(case):
    whole = bytearray(case.run().read_bytes())
    place = whole.find(xr.load_dataset(case.run()).logit_gap.values[0, 0, 0].tobytes())
    assert place > 0
    whole[place] ^= 1
    case.run().write_bytes(whole)


def another_run_under_its_name(case):
    shutil.copy(case.run(2), case.run(0))


def removed_run(case):
    case.run().unlink()


def copied_from_a_private_experiment(case):
    private = case.record(0.001, size_factor=5.0)
    case.record(0.9)
    shutil.copy(private, case.path)


def recorded_under_the_other_optimiser(case):
    case.record(0.001, "sgd")


def recorded_for_another_claim(case):
    case.record(0.001, claim="C10")


def started_again_but_failed(case):
    Recording(case.store, case.source(), case.scratch)  # what notebook.start does; then a cell raised


def recorded_but_failed_later(case):
    case.record(0.001, through=False)


def started_again_while_it_ran(case):
    case.record(0.001, through=False)
    Recording(case.store, case.source(), case.store.root)  # another process, which fails
    complete(case.scratch)  # and the first comes to its end


def no_longer_recorded(case):
    lines = case.notebook.read_text().splitlines(True)
    case.notebook.write_text("".join(line for line in lines if "record" not in line))


def notebook_gone(case):
    case.notebook.unlink()


def notebook_unreadable(case):
    case.notebook.write_text("def f(:")


def forged(**changes):
    def damage(case):
        case.forge(**changes)

    damage.__name__ = f"forged {changes}"[:60]
    return damage


WAYS = {
    claims.NOT_TESTED: [
        missing,
        cut_off,
        edit_value,
        drop_the_checksum,
        old_format,
        empty_run,
        run_is_a_folder,
        flipped_run,
        another_run_under_its_name,
        removed_run,
        copied_from_a_private_experiment,
        recorded_under_the_other_optimiser,
        recorded_for_another_claim,
        started_again_but_failed,
        recorded_but_failed_later,
        started_again_while_it_ran,
        *(forged(complete=value) for value in (False, "yes")),
        *(forged(runs=value) for value in ([], ["*"], ["????????????"], ["[0-9a-f]" * 12], ["0123456789ab"], [""])),
        *(forged(runs=value) for value in ([None], None, "0123456789ab")),
        *(forged(values=value) for value in ({}, None, {"coefficient_of_variation": None}, [0.01])),
        *(forged(n=value) for value in ({}, {"architectures": "5", "contexts": 10})),
        *(forged(**{name: value}) for name, value in {"interval": 3, "detail": 3, "key": None}.items()),
        *(forged(**{name: {}}) for name in ("experiment", "measurements")),
    ],
    claims.STALE: [no_longer_recorded, notebook_gone, notebook_unreadable, forged(key=""), forged(key="0" * 64)],
}


@pytest.mark.parametrize(
    "status, way",
    [(status, way) for status, ways in WAYS.items() for way in ways],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_no_way_leads_to_a_false_verdict(case, status, way):
    assert case.verdict().status == claims.REPRODUCED
    way(case)
    verdict = case.verdict()
    assert verdict.status == status and verdict.reason
    assert status != claims.STALE or "run notebook 08 again" in verdict.reason


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
