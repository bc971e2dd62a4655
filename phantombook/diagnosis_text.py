"""Around a diagnosis at the command line: find the words, check by training, and say it in text and JSON."""

import math
import tempfile
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic_core import to_json

from phantomlib.contexts import Context, Resolved, load_contexts, resolve
from phantomlib.critical.rehearsal import Estimate
from phantomlib.critical.search import critical_rates
from phantomlib.diagnosis import LORA_FACTOR, Diagnosis, Proposal, counted_steps, propose
from phantomlib.engine.finetune import check_recording, finetune
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ParameterError, did_you_mean
from phantomlib.models.language_model import LanguageModel
from phantomlib.runs.store import Store

LONGEST = 24 * 3600  # seconds that a check may take
RUNS = 6  # that a check takes: a search of about five, and the one asked about
WAYS = {"learning rate": "learning rate", "steps": "more steps", "margin": "margin loss"}


@dataclass(frozen=True)
class Check:
    """What happened when the fine-tune was run."""

    critical_rate: float  #: measured; ``low`` does not cross, ``high`` does; nan without a crossing
    low: float
    high: float
    inside: bool  #: whether the prediction's interval holds it
    final_gap: float | None = None  #: Δ in nats after T steps at the learning rate asked about; None without one
    first_step: int | None = None  #: the first step of that run with Δ > 0, or None
    cross_entropy_fall: float | None = None  #: how much lower its cross-entropy ends, in nats


def find_context(
    context: str | None, contexts: str, prompt: str | None, correct: str | None, competitor: str | None
) -> Context:
    """The context with an id, or one of a prompt and words; without a competitor that word is empty.

    ParameterError if neither or both are given, there is no such context, or both words are the same.
    """
    if context is not None:
        if prompt or correct or competitor:
            raise ParameterError("Give either --context, or --prompt with --correct (and --competitor), not both.")
        found = {c.id: c for c in load_contexts(contexts)}
        if context not in found:
            near = did_you_mean(context, found)
            raise ParameterError(f"'{contexts}' has no context '{context}'{near}. It has {', '.join(found)}.")
        return found[context]
    if not (prompt and prompt.strip() and correct and correct.strip()):
        raise ParameterError("Say what is to be learnt: --context ID, or --prompt TEXT with --correct WORD.")
    if correct.strip() == (competitor or "").strip():
        raise ParameterError(f"correct and competitor are both '{correct}'; choose two different words.")
    return Context("given", prompt, correct, competitor or "")


def resolve_words(model: LanguageModel, chosen: Context, *, chat: bool) -> tuple[Resolved, list[Proposal]]:
    """What is to be learnt, as the model's tokens; and the competitors proposed, of which the first is taken, if none was given.

    With ``chat`` the prompt is a user's turn in the tokenizer's chat template, and the words begin the answer; ParameterError
    if there is none, or its text is not read as it is written.
    """
    tokenizer, proposals = model.tokenizer, []
    if chat:
        if not tokenizer.chat_template:
            raise ParameterError("The model's tokenizer has no chat template; leave out --chat.")
        turn = [{"role": "user", "content": chosen.prompt}]
        chosen = replace(chosen, prompt=tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    if not chosen.competitor:
        proposals = propose(model, chosen.prompt, chosen.correct)
        chosen = replace(chosen, competitor=proposals[0].word)
    resolved = resolve(chosen, tokenizer)
    if chat and resolved.prompt_ids != tuple(tokenizer(chosen.prompt, add_special_tokens=False)["input_ids"]):
        raise ParameterError("The chat template would not be read as it is written; give the prompt without --chat.")
    return resolved, proposals


def check_diagnosis(
    model: LanguageModel, context: Resolved, recipe: Recipe, diagnosis: Diagnosis, store: Store | None
) -> Check:
    """Run the fine-tune: find its critical learning rate to half a percent, and train at the rate asked about.

    The runs are kept in the store, if one is given. ParameterError if it would take more memory than there is, or longer than
    a day.
    """
    if store is None:
        with tempfile.TemporaryDirectory(prefix="phantom-") as scratch:
            return check_diagnosis(model, context, recipe, diagnosis, Store(scratch))
    check_recording(2, model, recipe)
    _check_time(model, context, recipe)
    found = critical_rates(store, model, [context], recipe).isel(context=0)
    rate = float(found.critical_rate)
    inside = diagnosis.critical.low <= rate <= diagnosis.critical.high
    measured = Check(rate, float(found.lower), float(found.upper), inside)
    if diagnosis.learning_rate is None:
        return measured
    run = store.run(model, [context], [diagnosis.learning_rate], recipe).isel(context=0, rate=0, seed=0)
    ahead = np.flatnonzero(run.logit_gap.values > 0)
    return replace(
        measured,
        final_gap=float(run.logit_gap[-1]),
        first_step=int(ahead[0]) if len(ahead) else None,
        cross_entropy_fall=float(run.cross_entropy[0] - run.cross_entropy[-1]),
    )


def _check_time(model: LanguageModel, context: Resolved, recipe: Recipe) -> None:
    """Refuse a check that would take more than a day, at the pace of four steps more than one."""
    seconds = []
    for steps in (1, 1, 5):  # the first to warm up
        started = time.perf_counter()
        finetune(model, [context], [1e-6], replace(recipe, steps=steps, snapshots=()), chunk=1)
        seconds.append(time.perf_counter() - started)
    step = max(seconds[2] - seconds[1], 0.0) / 4
    if (needed := step * recipe.steps * RUNS) > LONGEST:
        raise ParameterError(
            f"About {RUNS} runs of {recipe.steps:,} steps would take {needed / 86400:,.0f} days at {1000 * step:.3g} ms a "
            "step. Ask for fewer steps; only learning rate times steps matters, so a larger learning rate does as much."
        )


def diagnosis_as_json(diagnosis: Diagnosis, outcome: Check | None = None, proposals: Sequence[Proposal] = ()) -> str:
    """Everything; what is undefined is null."""
    found = {"diagnosis": diagnosis, "proposals": list(proposals)} | ({"check": outcome} if outcome else {})
    return to_json(found, indent=1, inf_nan_mode="null").decode()


def diagnosis_as_text(diagnosis: Diagnosis, outcome: Check | None = None, proposals: Sequence[Proposal] = ()) -> str:
    """The diagnosis as lines for a terminal, the verdict last."""
    d = diagnosis
    rate = "" if d.learning_rate is None else f", learning rate {d.learning_rate:.3g}"
    lines = [
        f"{d.model}: {' '.join(d.prompt.split())} … “{d.correct}”, not “{d.competitor}”",
        f"{d.method}, {d.optimizer}, {counted_steps(d.steps)}{rate}",
        *textwrap.wrap(f"Assumed: {'; '.join(d.assumptions)}.", 100, subsequent_indent="  "),
        "",
    ]
    if proposals:
        strongest = max(proposals, key=lambda p: p.probability)
        lines += ["Words the model prefers, those nearest in the readout first; the first is taken:"]
        for p in proposals:
            rival = "   the strongest rival" if p is strongest else ""
            lines += [f"  {p.word:<16} probability {p.probability:.3f}   overlap {p.overlap:+.2f}{rival}"]
        lines += [""]
    rows = {
        "rank": f"{d.rank}",
        "p_c, p_k": f"{d.p_correct:.4f}, {d.p_competitor:.4f}",
        "gap": f"{d.gap:+.3f} nat",
        "overlap": f"{d.overlap:.3f}",
        "bulk mass": f"{d.bulk_mass:.3f}",
        "Φ = S + D": f"{d.phi:+.4f} = {d.signal:+.4f} {'+' if d.drag >= 0 else '−'} {abs(d.drag):.4f}",
    }
    if d.phi > 0 > d.gap:
        rows["  why positive"] = f"the drag: other likely words lie nearer to “{d.correct}”"
    rows |= {
        "velocity": f"{d.velocity:.4g} nat per unit learning rate",
        "kinematic number": _number(d),
        "critical learning rate": f"{_estimate(d.critical)}, predicted",
    }
    if outcome is not None:
        place = "inside the interval" if outcome.inside else "OUTSIDE the interval"
        measured = f"{outcome.critical_rate:.4g} ({outcome.low:.4g} to {outcome.high:.4g}): {place}"
        rows["  measured"] = "no learning rate crossed" if math.isnan(outcome.critical_rate) else measured
    if outcome is not None and outcome.final_gap is not None:
        when = "never ahead" if outcome.first_step is None else f"ahead after {counted_steps(outcome.first_step)}"
        end = f"gap ends at {outcome.final_gap:+.3f} nat, loss {outcome.cross_entropy_fall:.3f} nat lower"
        rows["  the run"] = f"{when}; {'it diverges' if math.isnan(outcome.final_gap) else end}"
    rows["bulk"] = f"coherence {d.coherence:.2f}: {d.bulk_class}"
    if d.method == "lora":  # the verdict is about LoRA at the learning rate asked about
        rows["full"] = f"critical learning rate {_estimate(d.critical_full)}, if all parameters are trained"
    elif math.isnan(d.critical_lora.rate):
        rows["LoRA"] = d.lora_outlook
    else:
        law = "" if math.isnan(d.lora_by_law) else f"; from that of full by LoRA's law {d.lora_by_law:.3g}"
        rows["LoRA"] = f"critical learning rate {_estimate(d.critical_lora)}{law}"
        rows[""] = f"at {LORA_FACTOR} times that of full fine-tuning: {d.lora_outlook}"
    width = max(map(len, rows))
    lines += [f"{name:<{width}}  {text}" for name, text in rows.items()]
    if d.remedies:
        lines += ["", "What would do, and how far it moves the model's predictions elsewhere (rehearsed):"]
    for r in d.remedies:
        moved = "not measured" if math.isnan(r.collateral) else f"{r.collateral:.2g} nat"
        takes = f"; {r.training:.2g} times the training" if r.training > 1 else ""
        takes += "; the loss is told the competitor" if r.way == "margin" else ""
        lines += [f"  {WAYS[r.way]:<14} {f'{r.steps} steps at {r.learning_rate:.2g}':<24} {moved}{takes}"]
    return "\n".join([*lines, "", d.verdict])


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
