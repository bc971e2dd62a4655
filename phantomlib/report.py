"""A diagnosis in words, and in JSON types."""

import math
from collections.abc import Sequence
from dataclasses import asdict

from phantomlib.critical.rehearsal import Estimate
from phantomlib.cure import remedies_as_text
from phantomlib.diagnosis import LORA_FACTOR, Check, Diagnosis, Proposal, counted_steps


def diagnosis_as_dict(diagnosis: Diagnosis, outcome: Check | None = None, proposals: Sequence[Proposal] = ()) -> dict:
    """Everything in JSON types; what is undefined is None."""
    found = {"diagnosis": asdict(diagnosis), "proposals": [asdict(p) for p in proposals]}
    if outcome is not None:
        found["check"] = asdict(outcome)
    return _json_types(found)


def _json_types(value):
    if isinstance(value, dict):
        return {key: _json_types(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_types(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def diagnosis_as_text(diagnosis: Diagnosis, outcome: Check | None = None, proposals: Sequence[Proposal] = ()) -> str:
    """The diagnosis as lines for a terminal, the verdict last."""
    d = diagnosis
    rate = "" if d.learning_rate is None else f", learning rate {d.learning_rate:.3g}"
    lines = [
        f"{d.model}: {d.prompt} … “{d.correct}”, not “{d.competitor}”",
        f"{d.method}, {d.optimizer}, {counted_steps(d.steps)}{rate}",
        "",
    ]
    if proposals:
        lines += ["Words the model prefers, those nearest in the readout first; the first is taken:"]
        lines += [f"  {p.word:<16} probability {p.probability:.3f}   overlap {p.overlap:+.2f}" for p in proposals]
        lines += [""]
    rows = {
        "rank": f"{d.rank}",
        "p_c, p_k": f"{d.p_correct:.4f}, {d.p_competitor:.4f}",
        "gap": f"{d.gap:+.3f} nat",
        "overlap": f"{d.overlap:.3f}",
        "bulk mass": f"{d.bulk_mass:.3f}",
        "Φ = S + D": f"{d.phi:+.4f} = {d.signal:+.4f} {'+' if d.drag >= 0 else '−'} {abs(d.drag):.4f}",
        "velocity": f"{d.velocity:.4g} nat per unit learning rate",
        "kinematic number": _number(d),
        "critical learning rate": f"{_estimate(d.critical)}, predicted",
    }
    if outcome is not None:
        rows |= _outcome(outcome)
    rows |= {
        "bulk": f"coherence {d.coherence:.2f}: {d.bulk_class}",
        "LoRA": f"critical learning rate {_estimate(d.critical_lora)}",
        "": f"at {LORA_FACTOR} times that of full fine-tuning: {d.lora_outlook}",
    }
    width, ways = max(map(len, rows)), ["", *remedies_as_text(d.remedies)] if d.remedies else []
    return "\n".join([*lines, *(f"{name:<{width}}  {text}" for name, text in rows.items()), *ways, "", d.verdict])


def _number(d: Diagnosis) -> str:
    usual = "critical on the zoo: {:.2f} to {:.2f}".format(*d.kinematic_range)
    if d.kinematic_number is None:
        return f"not without a learning rate ({usual})"
    if math.isnan(d.kinematic_number):
        return "undefined: the first update moves away from the correct token"
    plain = 1e-3 <= d.kinematic_number < 1e3
    return f"{d.kinematic_number:{'.3f' if plain else '.3g'}} ({usual})"


def _estimate(e: Estimate) -> str:
    return f"{e.rate:.3g} ({e.low:.3g} to {e.high:.3g})" if math.isfinite(e.rate) else "none found"


def _outcome(outcome: Check) -> dict[str, str]:
    if math.isnan(outcome.critical_rate):
        rows = {"  measured": "no learning rate crossed"}
    else:
        place = "inside the interval" if outcome.inside else "OUTSIDE the interval"
        rows = {"  measured": f"{outcome.critical_rate:.4g} ({outcome.low:.4g} to {outcome.high:.4g}): {place}"}
    if outcome.final_gap is not None:
        when = "never ahead" if outcome.first_step is None else f"ahead after {counted_steps(outcome.first_step)}"
        end = f"gap ends at {outcome.final_gap:+.3f} nat, loss {outcome.cross_entropy_fall:.3f} nat lower"
        rows["  the run"] = f"{when}; {'it diverges' if math.isnan(outcome.final_gap) else end}"
    return rows
