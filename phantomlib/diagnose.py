"""Before training: will this fine-tune ever come to prefer the right word, and from which learning rate on?

Everything here comes from passes at step 0 and a rehearsal of four coarse steps (:mod:`phantomlib.rehearsal`).
"""

import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from phantomlib import bulk, figures
from phantomlib.contexts import Context, Resolved, resolve, single_tokens
from phantomlib.critical import critical_rates
from phantomlib.curvature import PLAIN, velocity
from phantomlib.errors import ContextError, ParameterError
from phantomlib.finetune import Recipe, check_contexts, check_learning_rates
from phantomlib.models import LanguageModel, next_token_logits
from phantomlib.order_parameter import decompose, overlaps
from phantomlib.rehearsal import CLOSE, SILENT, Estimate, constants, errors, predict

MARGIN = 1.1  # what is advised lies this far beyond the interval
LORA_FACTOR = 10  # the book's LoRA recipe trains at this many times the critical learning rate of full fine-tuning
JUMPS_ABOVE = 10  # critical learning rates from which on single-step jumps were seen


@dataclass(frozen=True)
class Proposal:
    """A token that outranks the correct word: text, id, probability, and overlap of its readout row with the word's."""

    word: str
    id: int
    probability: float
    overlap: float


@dataclass(frozen=True)
class Diagnosis:
    """One fine-tuning problem before its first step.

    Attributes:
        model, prompt, correct, competitor: what is to be learnt, in plain words.
        optimizer, method, steps: how.
        learning_rate: the one asked about, or None.
        rank: of the correct token; 1 is first.
        p_correct, p_competitor, bulk_mass: probabilities; they sum to one.
        gap: logit gap ``z_c - z_k`` in nats.
        overlap: ``g_ck``.
        phi, signal, drag: the order parameter and its parts.
        velocity: ``v_0`` in nats per unit learning rate.
        kinematic_number: N at ``learning_rate``; None without one, nan if ``v_0`` is not positive.
        kinematic_range: smallest and largest critical N on the zoo.
        critical: predicted critical learning rate of this fine-tune.
        critical_lora: the same for LoRA.
        outcome: ``silent failure``, ``overtakes``, ``too close to call`` or ``cannot be told``; None if none was asked.
        coherence: B of the readout.
        bulk_class: the side of the boundary between the zoo's two classes on which it lies.
        lora_outlook: outcome of LoRA at ten times the critical learning rate of full fine-tuning.
        verdict: in plain English.
    """

    model: str
    prompt: str
    correct: str
    competitor: str
    optimizer: str
    method: str
    steps: int
    learning_rate: float | None
    rank: int
    p_correct: float
    p_competitor: float
    bulk_mass: float
    gap: float
    overlap: float
    phi: float
    signal: float
    drag: float
    velocity: float
    kinematic_number: float | None
    kinematic_range: tuple[float, float]
    critical: Estimate
    critical_lora: Estimate
    outcome: str | None
    coherence: float
    bulk_class: str
    lora_outlook: str
    verdict: str


@dataclass(frozen=True)
class Check:
    """What happened when the fine-tune was run.

    Attributes:
        critical_rate: measured; ``low`` does not cross, ``high`` does. nan without a crossing.
        inside: whether the prediction's interval holds it.
        final_gap: Δ in nats after T steps at the learning rate asked about; None without one, as are the next two.
        first_step: the first step of that run with Δ > 0, or None.
        cross_entropy_fall: how much lower its cross-entropy ends, in nats.
    """

    critical_rate: float
    low: float
    high: float
    inside: bool
    final_gap: float | None = None
    first_step: int | None = None
    cross_entropy_fall: float | None = None


# ------------------------------------------------------------------------------------------------- the diagnosis


def diagnose(
    model: LanguageModel, context: Resolved, recipe: Recipe = PLAIN, learning_rate: float | None = None
) -> Diagnosis:
    """What can be said of one fine-tune before it starts.

    Args:
        model: the checkpoint; it is not changed.
        context: one resolved context; its competitor must outrank the correct token.
        recipe: optimiser, method and number of steps T.
        learning_rate: the one to be judged.

    Raises:
        ContextError: the model prefers the correct word already.
        ParameterError: a learning rate that is not a positive, finite number.
    """
    check_contexts(model, [context])
    if learning_rate is not None:
        check_learning_rates([learning_rate], 1)
    z = next_token_logits(model, [context])[0]
    p = z.double().softmax(-1)
    parts = decompose(p, model.readout.detach(), context.correct_id, context.competitor_id)
    first = velocity(model, [context], recipe)
    v, gap = float(first.velocity[0]), float(first.gap[0])
    number = None if learning_rate is None else learning_rate * recipe.steps * v / abs(gap) if v > 0 else math.nan
    by_method = {m: predict(model, [context], replace(recipe, method=m))[0] for m in ("full", "lora")}
    critical = by_method[recipe.method]
    coherence = bulk.coherence(model.readout)
    facts = {
        "model": model.name,
        "prompt": context.context.prompt.strip(),
        "correct": context.context.correct.strip(),
        "competitor": context.context.competitor.strip(),
        "optimizer": recipe.optimizer,
        "method": recipe.method,
        "steps": recipe.steps,
        "learning_rate": learning_rate,
        "rank": 1 + int((z > z[context.correct_id]).sum()),
        "p_correct": float(p[context.correct_id]),
        "p_competitor": float(p[context.competitor_id]),
        "bulk_mass": parts.bulk_mass,
        "gap": gap,
        "overlap": parts.overlap,
        "phi": parts.phi,
        "signal": parts.signal,
        "drag": parts.drag,
        "velocity": v,
        "kinematic_number": number,
        "kinematic_range": errors("kinematic", recipe).range,
        "critical": critical,
        "critical_lora": by_method["lora"],
        "outcome": None if learning_rate is None else critical.outcome(learning_rate),
        "coherence": coherence,
        "bulk_class": _bulk_class(coherence),
        "lora_outlook": by_method["lora"].outcome(LORA_FACTOR * by_method["full"].rate),
    }
    return Diagnosis(**facts, verdict=_verdict(facts))


def _bulk_class(coherence: float) -> str:
    known = constants()["bulk"]
    side = "coherent" if coherence > known["boundary"] else "dispersed"
    return f"{side}, as {', '.join(known[side])}"


def _verdict(facts: dict) -> str:
    critical, rate, steps = facts["critical"], facts["learning_rate"], facts["steps"]
    right, wrong = f"“{facts['correct']}”", f"“{facts['competitor']}”"
    method = "full fine-tuning" if facts["method"] == "full" else "LoRA"
    how = f"{_steps(steps)} of {method} with {'SGD' if facts['optimizer'] == 'sgd' else 'Adam'}"
    if not math.isfinite(critical.rate):
        return f"No learning rate was found at which {how} would come to prefer {right} to {wrong}."
    enough = _rounded_up(MARGIN * critical.high)
    if rate is None:
        return (
            f"With {how}, {right} overtakes {wrong} from a learning rate of about {critical.rate:.2g} on (between "
            f"{critical.low:.3g} and {critical.high:.3g}). Below it the loss falls and their order stays; {enough:.2g} "
            "should do."
        )
    longer = math.ceil(MARGIN * steps * critical.high / rate)
    if facts["outcome"] == SILENT:
        return (
            f"At {rate:.3g}, {how} will lower the loss without ever preferring {right} to {wrong}. Try {enough:.2g}, "
            f"or {longer} steps."
        )
    if facts["outcome"] == CLOSE:
        return (
            f"At {rate:.3g} it is too close to call whether {how} will come to prefer {right} to {wrong}. "
            f"{enough:.2g}, or {longer} steps, would be on the safe side."
        )
    times = rate / critical.rate
    text = f"At {rate:.3g}, {how} will come to prefer {right} to {wrong} after about {_steps(_first(steps, times))}."
    if times > JUMPS_ABOVE:
        text += f" That is {times:.0f} times what is needed; so far above, training moves in jumps. Try {enough:.2g}."
    return text


def _first(steps: int, times: float) -> int:
    """The step at which a run overtakes at so many times the critical learning rate: only η·T matters."""
    return max(1, math.ceil(steps / times))


def _steps(n: int) -> str:
    return f"{n} step" if n == 1 else f"{n} steps"


def _rounded_up(value: float) -> float:
    """The next number with two digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit - 1e-9) * unit


# ------------------------------------------------------------------------------------------------- competitors


def propose(model: LanguageModel, prompt: str, correct: str, count: int = 5) -> list[Proposal]:
    """Words that the model prefers to ``correct`` after ``prompt``, those of largest overlap with it first.

    Args:
        model: the checkpoint.
        prompt, correct: plain text and a plain word.
        count: how many at most.

    Raises:
        ContextError: ``correct`` is not a single token, or no other word outranks it.
    """
    prompt, correct = prompt.strip(), correct.strip()
    found = single_tokens(prompt, [correct], model.tokenizer)
    if found is None:
        resolve(Context("given", prompt, correct, ""), model.tokenizer)  # raises, proposing words that would do
    prompt_ids, (correct_id,) = found
    alone = Resolved(Context("given", prompt, correct, correct), prompt_ids, correct_id, correct_id)
    z = next_token_logits(model, [alone])[0]
    g = overlaps(model.readout.detach(), torch.tensor([correct_id], device=z.device))[:, 0]
    p, better = z.softmax(-1), z > z[correct_id]
    proposals = []
    for token in g.masked_fill(~better, -math.inf).argsort(descending=True)[: int(better.sum())].tolist():
        word = model.tokenizer.decode([token]).strip()
        if not word.isalpha() or word.casefold() == correct.casefold():
            continue
        pair = single_tokens(prompt, [correct, word], model.tokenizer)
        if pair is not None and pair[1][1] == token:  # the word, written after the prompt, is this very token
            proposals.append(Proposal(word, token, float(p[token]), float(g[token])))
        if len(proposals) == count:
            break
    if not proposals:
        raise ContextError(
            f"'{model.name}' prefers no other word to '{correct}' after this prompt, so there is nothing to overtake. "
            "Choose another word."
        )
    return proposals


# ------------------------------------------------------------------------------------------------- the check


def check(model: LanguageModel, context: Resolved, recipe: Recipe, diagnosis: Diagnosis, store) -> Check:
    """Run the fine-tune: find its critical learning rate to half a percent, and train at the rate asked about.

    Args:
        model, context, recipe, diagnosis: of :func:`diagnose`.
        store: a :class:`phantomlib.trajectories.Store`.
    """
    found = critical_rates(store, model, [context], recipe).isel(context=0)
    rate, low, high = float(found.critical_rate), float(found.lower), float(found.upper)
    inside = diagnosis.critical.low <= rate <= diagnosis.critical.high
    if diagnosis.learning_rate is None:
        return Check(rate, low, high, inside)
    run = store.run(model, [context], [diagnosis.learning_rate], recipe).isel(context=0, rate=0, seed=0)
    ahead = np.flatnonzero(run.logit_gap.values > 0)
    return Check(
        rate,
        low,
        high,
        inside,
        final_gap=float(run.logit_gap[-1]),
        first_step=int(ahead[0]) if len(ahead) else None,
        cross_entropy_fall=float(run.cross_entropy[0] - run.cross_entropy[-1]),
    )


# ------------------------------------------------------------------------------------------------- how it is shown


def as_dict(diagnosis: Diagnosis, outcome: Check | None = None, proposals: list[Proposal] = ()) -> dict:
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


def as_text(diagnosis: Diagnosis, outcome: Check | None = None, proposals: list[Proposal] = ()) -> str:
    """The diagnosis as lines for a terminal, the verdict last."""
    d = diagnosis
    rate = "" if d.learning_rate is None else f", learning rate {d.learning_rate:.3g}"
    lines = [
        f"{d.model}: {d.prompt} … “{d.correct}”, not “{d.competitor}”",
        f"{d.method}, {d.optimizer}, {_steps(d.steps)}{rate}",
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
        "": f"at {LORA_FACTOR} times the critical learning rate of full fine-tuning: {d.lora_outlook}",
    }
    width = max(map(len, rows))
    return "\n".join([*lines, *(f"{name:<{width}}  {text}" for name, text in rows.items()), "", d.verdict])


def _number(d: Diagnosis) -> str:
    usual = "critical on the zoo: {:.2f} to {:.2f}".format(*d.kinematic_range)
    if d.kinematic_number is None:
        return f"not without a learning rate ({usual})"
    if math.isnan(d.kinematic_number):
        return "undefined: the first update moves away from the correct token"
    return f"{d.kinematic_number:.3f} ({usual})"


def _estimate(e: Estimate) -> str:
    return f"{e.rate:.3g} ({e.low:.3g} to {e.high:.3g})" if math.isfinite(e.rate) else "none found"


def _outcome(outcome: Check) -> dict[str, str]:
    if math.isnan(outcome.critical_rate):
        rows = {"  measured": "no learning rate crossed"}
    else:
        place = "inside the interval" if outcome.inside else "OUTSIDE the interval"
        rows = {"  measured": f"{outcome.critical_rate:.4g} ({outcome.low:.4g} to {outcome.high:.4g}): {place}"}
    if outcome.final_gap is not None:
        when = "never ahead" if outcome.first_step is None else f"ahead after {_steps(outcome.first_step)}"
        fall = f"cross-entropy {outcome.cross_entropy_fall:.3f} nat lower"
        rows["  the run"] = f"{when}; gap ends at {outcome.final_gap:+.3f} nat, {fall}"
    return rows


def figure(diagnosis: Diagnosis, outcome: Check | None = None) -> Figure:
    """Left: where the probability is, and the parts of Φ. Right: learning rates, predicted and measured."""
    import matplotlib.pyplot as plt

    d = diagnosis
    fig, (left, right) = plt.subplots(1, 2, figsize=(figures.WIDTH, 2.8), layout="constrained", width_ratios=(2, 3))
    names = [f"“{d.correct}”", f"“{d.competitor}”", "all others", "$S$", "$D$", r"$\Phi$"]
    values = [d.p_correct, d.p_competitor, d.bulk_mass, d.signal, d.drag, d.phi]
    colours = [figures.CORRECT, figures.COMPETITOR, figures.REFERENCE, figures.SIGNAL, figures.DRAG, figures.PHI]
    left.barh(names, values, color=colours)
    left.axvline(0, color="black", linewidth=0.6)
    left.invert_yaxis()
    left.set(title="Before training", xlabel="probability; order parameter")
    right.set(xscale="log", yticks=[], ylim=(0, 1), xlabel=f"learning rate of {d.optimizer}", title="Learning rates")
    if math.isfinite(d.critical.rate):
        marks = [d.critical.rate] + [x for x in (d.learning_rate, outcome and outcome.critical_rate) if x]
        right.set_xlim(min(marks) / 4, max(marks) * 4)
        right.axvspan(d.critical.low, d.critical.high, color="#DDDDDD")
        right.axvline(d.critical.rate, color=figures.REFERENCE)
        low, high = right.get_xlim()
        right.text(low * 1.1, 0.05, "never preferred", color=figures.COMPETITOR, fontsize="small")
        right.text(high / 1.1, 0.05, "overtakes", color=figures.CORRECT, fontsize="small", ha="right")
        figures.label_line(right, d.critical.rate, 0.88, "predicted critical", figures.REFERENCE)
        if d.learning_rate is not None:
            right.plot(d.learning_rate, 0.3, "o", color=figures.PHI)
            figures.label_line(right, d.learning_rate, 0.3, " yours", figures.PHI)
        if outcome is not None and math.isfinite(outcome.critical_rate):
            right.plot(outcome.critical_rate, 0.6, "D", color=figures.SIGNAL)
            figures.label_line(right, outcome.critical_rate, 0.6, " measured critical", figures.SIGNAL)
    return fig


def check_plot(path: Path) -> None:
    """Raise ParameterError unless a figure can be written to ``path``."""
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise ParameterError(f"'{path}' does not name a kind of figure; end it with .png, .svg or .pdf.")
    if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise ParameterError(f"'{path}' cannot be written; choose a file in a folder that exists.")


def write_plot(path: Path, diagnosis: Diagnosis, outcome: Check | None = None) -> None:
    """Write the figure in one move."""
    import matplotlib

    matplotlib.use("Agg")  # no window
    figures.use_style()
    fresh = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        figure(diagnosis, outcome).savefig(fresh, dpi=200)
        os.replace(fresh, path)
    except OSError as error:
        raise ParameterError(f"'{path}' could not be written ({error.strerror}). Choose another place.") from None
    finally:
        fresh.unlink(missing_ok=True)
