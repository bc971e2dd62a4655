"""A training on a data set as a run of the store: made once, found again, and refused when it is not what was written."""

import numpy as np
import pytest

from phantomlib.dataset import runs
from phantomlib.dataset.rows import Row
from phantomlib.dataset.runs import train_once
from phantomlib.dataset.scan import scan
from phantomlib.dataset.train import train_and_measure
from phantomlib.models.language_model import load
from phantomlib.runs.run_file import INDEX
from phantomlib.runs.store import Store

RATES = [1e-3, 1e-2]
OPTIONS = {"epochs": 2, "batch_size": 2}


@pytest.fixture(scope="module")
def case():
    plain = load("zoo:gpt2-s")
    rows = [Row(n, tuple(range(n, n + 4)), (2, 3)) for n in range(1, 5)]
    return plain, rows, scan(plain, rows, batch_size=2)


def test_a_training_is_that_of_every_rate_and_order_and_is_made_once(case, tmp_path, monkeypatch):
    plain, rows, found = case
    made = train_once(Store(tmp_path), plain, rows, found, RATES, seeds=(3, 4), **OPTIONS)
    alone = train_and_measure(plain, rows, found, 1e-2, seed=4, **OPTIONS)
    for name in ("gap", "cross_entropy"):
        told = made[name].sel(seed=4).isel(rate=1).values.ravel()  # (epoch, target)
        np.testing.assert_array_equal(told, alone[name])
    assert made.row.values.tolist() == found.targets.row.tolist()
    monkeypatch.setattr(runs, "train_and_measure", None)
    again = train_once(Store(tmp_path), plain, rows, found, RATES, seeds=(3, 4), **OPTIONS)
    assert again.identical(made)


def test_whatever_decides_its_numbers_decides_its_id(case, tmp_path):
    plain, rows, found = case
    store = Store(tmp_path)

    def made(rows=rows, found=found, rates=RATES[:1], **options):
        return train_once(store, plain, rows, found, rates, **OPTIONS | {"epochs": 1} | options).attrs["run_id"]

    other = [*rows[:3], Row(4, (9, 9, 9, 9), (2, 3))]
    ids = [
        made(),
        made(rates=[2e-3]),
        made(schedule="linear"),
        made(clip=1.0),
        made(seeds=(1,)),
        made(rows=other, found=scan(plain, other, batch_size=2)),
    ]
    assert len(set(ids)) == len(ids) and made() == ids[0]


def test_a_run_counts_as_evidence_while_it_is_whole(case, tmp_path):
    plain, rows, found = case
    made = train_once(Store(tmp_path), plain, rows, found, RATES, **OPTIONS)
    identifier = made.attrs["run_id"]
    assert Store(tmp_path).holds(identifier)
    (tmp_path / INDEX).unlink()  # looked into anew, without what was noted of it
    assert Store(tmp_path).holds(identifier)
    [path] = tmp_path.glob(f"*-{identifier}.nc")
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    assert not Store(tmp_path).holds(identifier)
    with pytest.warns(UserWarning, match="set aside"):
        again = train_once(Store(tmp_path), plain, rows, found, RATES, **OPTIONS)
    np.testing.assert_array_equal(again.gap, made.gap)
    assert Store(tmp_path).holds(identifier)
