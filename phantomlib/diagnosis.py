"""Before training: will this fine-tune ever come to prefer the right word, and from which learning rate on?

Everything here comes from passes at step 0 and a rehearsal of four steps (:mod:`phantomlib.critical.rehearsal`).
"""

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from phantomlib import readout_geometry
from phantomlib.contexts import Context, Resolved, check_spelling, resolve, single_tokens
from phantomlib.critical.rehearsal import (
    CLOSE,
    OVERTAKES,
    REHEARSAL_STEPS,
    SILENT,
    UNKNOWN,
    Estimate,
    estimate_critical_rate,
    expected_errors,
    load_constants,
    rehearsal,
)
from phantomlib.critical.scaling import kinematic_number
from phantomlib.critical.search import critical_rates
from phantomlib.critical.step_zero import PLAIN, velocity
from phantomlib.cure import Remedy, enough, longer, remedies
from phantomlib.engine.finetune import check_recording, finetune
from phantomlib.engine.recipe import (
    Recipe,
    check_contexts,
    check_learning_rates,
    check_lengths,
    positions_of,
)
from phantomlib.errors import ContextError, ParameterError
from phantomlib.models.language_model import LanguageModel, next_token_logits
from phantomlib.order_parameter import decompose, overlaps

LORA_FACTOR = 10  # the book's LoRA recipe trains at this many times the critical learning rate of full fine-tuning
JUMPS_ABOVE = 10  # critical learning rates from which on single-step jumps were seen
LONGEST = 24 * 3600  # seconds that a check may take
RUNS = 6  # that a check takes: a search of about five, and the one asked about


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
        remedies: what would do, and what it costs; empty where the word overtakes anyway.
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
    remedies: tuple[Remedy, ...]
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

    Example:
        >>> import phantomlib as ph
        >>> model = ph.load("zoo:gpt2-s")
        >>> context = ph.resolve(ph.load_contexts()[0], model.tokenizer)
        >>> found = ph.diagnose(model, context, ph.Recipe(optimizer="adam", steps=20), learning_rate=1e-6)
        >>> found.outcome
        'silent failure'
    """
    check_contexts(model, [context])
    if learning_rate is not None:
        check_learning_rates([learning_rate], 1)
    z = next_token_logits(model, [context])[0]
    p = z.double().softmax(-1)
    parts = decompose(p, model.readout.detach(), context.correct_id, context.competitor_id)
    first = velocity(model, [context], recipe)
    v, gap = float(first.velocity[0]), float(first.gap[0])
    number = None
    if learning_rate is not None:
        number = kinematic_number(learning_rate, recipe.steps, v, gap) if v > 0 else math.nan
    by_method = {m: estimate_critical_rate(model, [context], replace(recipe, method=m))[0] for m in ("full", "lora")}
    critical = by_method[recipe.method]
    coherence = readout_geometry.coherence(model.readout)
    facts: dict[str, Any] = {
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
        "kinematic_range": expected_errors("kinematic", recipe).range,
        "critical": critical,
        "critical_lora": by_method["lora"],
        "outcome": None if learning_rate is None else _outcome(model, context, recipe, critical, learning_rate),
        "coherence": coherence,
        "bulk_class": _bulk_class(coherence),
        "lora_outlook": by_method["lora"].outcome(LORA_FACTOR * by_method["full"].rate),
    }
    ways = () if facts["outcome"] == OVERTAKES else remedies(model, context, recipe, critical, learning_rate)
    return Diagnosis(**facts, remedies=ways, verdict=_verdict(facts))


def _outcome(model: LanguageModel, context: Resolved, recipe: Recipe, critical: Estimate, learning_rate: float) -> str:
    """By the interval; far above it, where a run may diverge, only if the rehearsal at this very learning rate overtakes."""
    outcome, few = critical.outcome(learning_rate), rehearsal(recipe)
    if outcome != OVERTAKES or learning_rate <= JUMPS_ABOVE * critical.rate:
        return outcome
    rehearsed = learning_rate * recipe.steps / few.steps
    if not math.isfinite(rehearsed):
        return UNKNOWN
    gap = finetune(model, [context], [rehearsed], few, chunk=1).logit_gap
    return OVERTAKES if bool((gap > 0).any()) else UNKNOWN


def _bulk_class(coherence: float) -> str:
    known = load_constants()["bulk"]
    side = "coherent" if coherence > known["boundary"] else "dispersed"
    return f"{side}, as {', '.join(known[side])}"


def _verdict(facts: dict) -> str:
    critical, rate, steps = facts["critical"], facts["learning_rate"], facts["steps"]
    right, wrong = f"“{facts['correct']}”", f"“{facts['competitor']}”"
    method = "full fine-tuning" if facts["method"] == "full" else "LoRA"
    how = f"{counted_steps(steps)} of {method} with {'SGD' if facts['optimizer'] == 'sgd' else 'Adam'}"
    if not math.isfinite(critical.rate):
        return f"No learning rate was found at which {how} would come to prefer {right} to {wrong}."
    advised = enough(critical)
    if rate is None:
        return (
            f"With {how}, {right} overtakes {wrong} from a learning rate of about {critical.rate:.2g} on (between "
            f"{critical.low:.3g} and {critical.high:.3g}). Below it the loss falls and their order stays; {advised:.2g} "
            "should do."
        )
    more = longer(critical, steps, rate)
    or_longer = f", or {more} steps" if more else ""
    if facts["outcome"] == SILENT:
        hopeless = "" if or_longer else " No number of steps that anyone could run would do at this one."
        return (
            f"At {rate:.3g}, {how} will lower the loss without ever preferring {right} to {wrong}. "
            f"Try {advised:.2g}{or_longer}.{hopeless}"
        )
    if facts["outcome"] == CLOSE:
        return (
            f"At {rate:.3g} it is too close to call whether {how} will come to prefer {right} to {wrong}. "
            f"{advised:.2g}{or_longer}{',' if or_longer else ''} would be on the safe side."
        )
    times = rate / critical.rate
    if facts["outcome"] == UNKNOWN:
        return (
            f"At {rate:.3g} it cannot be told whether {how} will come to prefer {right} to {wrong}: that is "
            f"{_many(times)} times what is needed, and a rehearsal in {counted_steps(min(REHEARSAL_STEPS, steps))} diverges or never "
            f"gets there. Try {advised:.2g}."
        )
    text = f"At {rate:.3g}, {how} will come to prefer {right} to {wrong} after about {counted_steps(_first(steps, times))}."
    if times > JUMPS_ABOVE:
        text += (
            f" That is {_many(times)} times what is needed; so far above, training moves in jumps. Try {advised:.2g}."
        )
    return text


def _first(steps: int, times: float) -> int:
    """The step at which a run overtakes at so many times the critical learning rate: only η·T matters."""
    return max(1, math.ceil(steps / times))


def _many(times: float) -> str:
    return f"{times:.0f}" if times < 1e6 else "more than a million"


def counted_steps(n: int) -> str:
    return f"{n} step" if n == 1 else f"{n} steps"


def propose(model: LanguageModel, prompt: str, correct: str, count: int = 5) -> list[Proposal]:
    """Words that the model prefers to ``correct`` after ``prompt``, those of largest overlap with it first.

    Args:
        model: the checkpoint.
        prompt, correct: plain text and a plain word.
        count: how many at most.

    Raises:
        ContextError: the prompt is unknown to the tokenizer or longer than the model reads, ``correct`` is not a single
            token, or no other word outranks it.
    """
    prompt, correct = prompt.strip(), correct.strip()
    given = Context("given", prompt, correct, "")
    check_spelling(given, model.tokenizer)
    found = single_tokens(prompt, [correct], model.tokenizer)
    if found is None:
        resolve(given, model.tokenizer)  # raises, proposing words that would do
    assert found is not None
    prompt_ids, (correct_id,) = found
    alone = Resolved(Context("given", prompt, correct, correct), prompt_ids, correct_id, correct_id)
    check_lengths(f"'{model.name}'", len(model.readout), positions_of(model.module.config), [alone])
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


def check_diagnosis(model: LanguageModel, context: Resolved, recipe: Recipe, diagnosis: Diagnosis, store) -> Check:
    """Run the fine-tune: find its critical learning rate to half a percent, and train at the rate asked about.

    Args:
        model, context, recipe, diagnosis: of :func:`diagnose`.
        store: a :class:`phantomlib.runs.store.Store`.

    Raises:
        ParameterError: it would take more memory than there is, or longer than a day.
    """
    check_recording(2, model, recipe)
    _check_time(model, context, recipe, diagnosis)
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


def _check_time(model: LanguageModel, context: Resolved, recipe: Recipe, diagnosis: Diagnosis) -> None:
    """Refuse a check that would take more than a day, at the pace of four steps more than one."""
    seconds = []
    rate = diagnosis.critical.rate if math.isfinite(diagnosis.critical.rate) else 1e-6
    for steps in (1, 1, 5):  # the first to warm up
        started = time.perf_counter()
        finetune(model, [context], [rate], replace(recipe, steps=steps, snapshots=()), chunk=1)
        seconds.append(time.perf_counter() - started)
    step = max(seconds[2] - seconds[1], 0.0) / 4
    needed = step * recipe.steps * RUNS
    if needed > LONGEST:
        raise ParameterError(
            f"About {RUNS} runs of {recipe.steps:,} steps would take {needed / 86400:,.0f} days at {1000 * step:.3g} ms a "
            "step. Ask for fewer steps; only learning rate times steps matters, so a larger learning rate does as much."
        )
