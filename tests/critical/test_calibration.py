"""Calibrations against a planted law."""

import numpy as np
import pytest
from planted import planted

from phantomlib.critical import calibration


def test_calibrations_recover_the_planted_law():
    table = planted()
    assert calibration.fit_calibration(table, "velocity", "none") == (0.0, 0.0)
    assert calibration.fit_calibration(table, "velocity", "gap") == pytest.approx((0.1, 0.2))
    constant, slope = calibration.fit_calibration(table, "velocity", "constant")
    assert constant == pytest.approx(0.1 + 0.2 * table.gap.abs().mean()) and slope == 0
    np.testing.assert_allclose(calibration.apply_calibration(table, "velocity", (0.1, 0.2)), table.measured)


def test_leaving_one_out_never_fits_on_what_it_predicts():
    table = planted()
    table.loc[table.model == "e", "measured"] *= 10  # an outlier must not help itself
    errors = calibration.leave_one_out(table, ["velocity"])
    of_e = errors[(errors.model == "e") & (errors.calibration == "gap")].error
    np.testing.assert_allclose(of_e, -np.log(10))


def test_the_best_predictor_ranks_first_and_partial_ones_last():
    predictors = ["first_steps", "velocity", "third_order"]  # the best is not the first
    ranked = calibration.ranking(calibration.leave_one_out(planted(), predictors))
    order = list(zip(ranked.predictor, ranked.calibration, strict=True))
    assert order[0] == ("velocity", "gap") and ranked.rms[0] < 1e-12  # the planted law
    assert [predictor for predictor, _ in order[1:4]] == ["third_order"] * 3 and ranked.rms[1] < 1e-3  # but for noise
    assert order[4:6] == [("velocity", "constant"), ("velocity", "none")]
    assert set(ranked.predictor.tail(3)) == {"first_steps"} and (ranked.missing.tail(3) == 50).all()
    words = calibration.in_words(ranked)
    np.testing.assert_allclose(words["rms (%)"], 100 * ranked.rms)
    assert "third order" in set(words.predictor)
