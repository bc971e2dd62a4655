"""Before training: will this fine-tune ever come to prefer the right word, and from which learning rate on?

Everything here comes from passes at step 0 and a rehearsal of four steps (:mod:`phantomlib.critical.rehearsal`).
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch

from phantomlib import readout_geometry
from phantomlib.contexts import Context, Resolved, check_spelling, resolve, tokens_of
from phantomlib.critical import rehearsal
from phantomlib.critical.rehearsal import Estimate
from phantomlib.critical.scaling import kinematic_number, lora_critical_rate
from phantomlib.critical.step_zero import PLAIN, velocity, velocity_growth
from phantomlib.cure import Remedy, enough, longer, remedies
from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe, check_contexts, check_learning_rates, check_lengths, positions_of
from phantomlib.errors import ContextError, ModelError, PhantomError
from phantomlib.models.language_model import LanguageModel, next_token_logits
from phantomlib.order_parameter import decompose, overlaps
from phantomlib.progress import track

LORA_FACTOR = 10  # the book's LoRA recipe trains at this many times the critical learning rate of full fine-tuning
JUMPS_ABOVE = 10  # critical learning rates from which on single-step jumps were seen
LIKELY = 0.9  # a model would go on with a word of the smallest set that holds this probability (its nucleus)
NAMES = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "full": "full fine-tuning", "lora": "LoRA"}


@dataclass(frozen=True)
class Proposal:
    """A token that outranks the correct word: text, id, probability, and overlap of its readout row with the word's."""

    word: str
    id: int
    probability: float
    overlap: float


@dataclass(frozen=True)
class Diagnosis:
    """One fine-tuning problem before its first step."""

    model: str  #: what is to be learnt, and of what, in plain words
    prompt: str
    correct: str
    competitor: str
    optimizer: str  #: how it is to be learnt
    method: str
    steps: int
    lora_rank: int
    lora_alpha: float
    learning_rate: float | None  #: the one asked about, if any
    assumptions: tuple[str, ...]  #: about the training; a run on a data set, for one, is another
    rank: int  #: of the correct token; 1 is first
    p_correct: float  #: probabilities; with that of the competitor and ``bulk_mass`` they sum to one
    p_competitor: float
    bulk_mass: float
    gap: float  #: logit gap ``z_c - z_k`` in nats
    overlap: float  #: ``g_ck``
    phi: float  #: the order parameter, ``signal + drag``
    signal: float
    drag: float
    velocity: float  #: ``v_0`` in nats per unit learning rate
    kinematic_number: float | None  #: N at ``learning_rate``; None without one, nan if ``v_0`` is not positive
    kinematic_range: tuple[float, float]  #: smallest and largest critical N on the zoo
    critical: Estimate  #: predicted critical learning rate of this fine-tune
    critical_full: Estimate  #: the same by method
    critical_lora: Estimate
    lora_by_law: (
        float  #: LoRA's from that of full fine-tuning and passes at step 0; nan under SGD, where the law does not hold
    )
    outcome: str | None  #: ``silent failure``, ``overtakes``, ``too close to call`` or ``cannot be told``
    coherence: float  #: B of the readout
    bulk_class: str  #: the side of the boundary between the zoo's two classes on which B lies
    lora_outlook: str  #: of LoRA at ten times the critical learning rate of full fine-tuning, or why there is none
    remedies: tuple[Remedy, ...]  #: what would do, and what it costs; empty where the word overtakes anyway
    verdict: str = ""  #: in plain English


def diagnose(
    model: LanguageModel, context: Resolved, recipe: Recipe = PLAIN, learning_rate: float | None = None
) -> Diagnosis:
    """What can be said before it starts of a fine-tune on one sentence alone, and of a learning rate, if one is given.

    Raises:
        ContextError: the model prefers the correct word already.
        ModelError: LoRA is asked about, and cannot be applied to this architecture.
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
    with track(f"{model.name}, diagnosis", 4) as advance:
        lora, why_not = _lora(model, context, recipe)  # first: asked about and impossible, nothing else matters
        advance(1)
        z = next_token_logits(model, [context])[0]
        p = z.double().softmax(-1)
        parts = decompose(p, model.readout.detach(), context.correct_id, context.competitor_id)
        first = velocity(model, [context], recipe)
        v, gap = float(first.velocity[0]), float(first.gap[0])
        number = None
        if learning_rate is not None:
            number = kinematic_number(learning_rate, recipe.steps, v, gap) if v > 0 else math.nan
        advance(1)
        [full] = rehearsal.estimate_critical_rate(model, [context], replace(recipe, method="full"))
        critical = full if recipe.method == "full" else lora
        advance(1)
        outcome = None if learning_rate is None else _outcome(model, context, recipe, critical, learning_rate)
        ways = () if outcome == rehearsal.OVERTAKES else remedies(model, context, recipe, critical, learning_rate)
        advance(1)
    words = context.context
    correct = words.correct.strip()
    known, coherence = rehearsal.load_constants()["bulk"], readout_geometry.coherence(model.readout)
    side = "coherent" if coherence > known["boundary"] else "dispersed"
    assumptions = ["this sentence alone is trained on", f"the loss is that of “{correct}” only"]
    assumptions += [*filter(None, [context.compared]), "the learning rate is constant", "without dropout"]
    if recipe.method == "lora":
        adapters = f"LoRA (rank {recipe.rank}, alpha {recipe.alpha:g})"
        assumptions.append(f"{adapters} on all linear layers but the readout")
    found = Diagnosis(
        model=model.name,
        prompt=words.prompt.strip(),
        correct=correct,
        competitor=words.competitor.strip(),
        optimizer=recipe.optimizer,
        method=recipe.method,
        steps=recipe.steps,
        lora_rank=recipe.rank,
        lora_alpha=recipe.alpha,
        learning_rate=learning_rate,
        assumptions=tuple(assumptions),
        rank=1 + int((z > z[context.correct_id]).sum()),
        p_correct=float(p[context.correct_id]),
        p_competitor=float(p[context.competitor_id]),
        **{name: getattr(parts, name) for name in ("bulk_mass", "overlap", "phi", "signal", "drag")},
        gap=gap,
        velocity=v,
        kinematic_number=number,
        kinematic_range=rehearsal.expected_errors("kinematic", recipe).range,
        critical=critical,
        critical_full=full,
        critical_lora=lora,
        lora_by_law=math.nan if why_not else _lora_by_law(model, context, recipe, full.rate),
        outcome=outcome,
        coherence=coherence,
        bulk_class=f"{side}, as {', '.join(known[side])}",
        lora_outlook=why_not or lora.outcome(LORA_FACTOR * full.rate),
        remedies=ways,
    )
    return replace(found, verdict=_verdict(found))


def _lora(model: LanguageModel, context: Resolved, recipe: Recipe) -> tuple[Estimate, str]:
    """The critical learning rate of LoRA; or none, and why it cannot be applied. An error if LoRA is what is asked about."""
    try:
        return rehearsal.estimate_critical_rate(model, [context], replace(recipe, method="lora"))[0], ""
    except Exception as error:  # of peft, and of layers that do not expect an adapter: in many ways
        why = f"LoRA on all linear layers cannot be applied to '{model.name}' ({' '.join(str(error).split())[:200]})"
        if recipe.method == "full":
            return Estimate(math.nan, math.nan, math.nan), why
        if isinstance(error, PhantomError):
            raise
        raise ModelError(f"{why}. Ask about full fine-tuning.") from error


def _lora_by_law(model: LanguageModel, context: Resolved, recipe: Recipe, full_rate: float) -> float:
    """The learning rate at which LoRA's number, corrected for the growth of its velocity, is that of full fine-tuning."""
    if recipe.optimizer == "sgd":
        return math.nan
    full, lora = (replace(recipe, method=method) for method in ("full", "lora"))
    first = velocity(model, [context], full)
    number = kinematic_number(full_rate, recipe.steps, first.velocity, first.gap)
    first, growth = velocity(model, [context], lora), velocity_growth(model, [context], lora)
    return float(
        lora_critical_rate(number.numpy(), recipe.steps, *(x.numpy() for x in (first.velocity, first.gap, growth)))[0]
    )


def _outcome(model: LanguageModel, context: Resolved, recipe: Recipe, critical: Estimate, learning_rate: float) -> str:
    """By the interval; far above it, where a run may diverge, only if the rehearsal at this very learning rate overtakes."""
    outcome, few = critical.outcome(learning_rate), rehearsal.rehearsal(recipe)
    if outcome != rehearsal.OVERTAKES or learning_rate <= JUMPS_ABOVE * critical.rate:
        return outcome
    rehearsed = learning_rate * recipe.steps / few.steps
    if math.isfinite(rehearsed) and bool((finetune(model, [context], [rehearsed], few, chunk=1).logit_gap > 0).any()):
        return rehearsal.OVERTAKES
    return rehearsal.UNKNOWN


def _verdict(d: Diagnosis) -> str:
    critical, rate = d.critical, d.learning_rate
    right, wrong = f"“{d.correct}”", f"“{d.competitor}”"
    how = f"{counted_steps(d.steps)} of {NAMES[d.method]} with {NAMES[d.optimizer]} on this sentence alone"
    prefer = f"{how} will come to prefer {right} to {wrong}"
    if not math.isfinite(critical.rate):
        return f"No learning rate was found at which {how} would come to prefer {right} to {wrong}."
    advised = f"{enough(critical):.2g}"
    if rate is None:
        about = f"about {critical.rate:.2g} on (between {critical.low:.3g} and {critical.high:.3g})"
        below = f"Below it the loss falls and their order stays; {advised} should do."
        return f"With {how}, {right} overtakes {wrong} from a learning rate of {about}. {below}"
    more, times = longer(critical, d.steps, rate), rate / critical.rate
    many = f"{times:.0f}" if times < 1e6 else "more than a million"
    if d.outcome == rehearsal.SILENT:
        hopeless = "" if more else " No number of steps that anyone could run would do at this one."
        ways = f"Try {advised}, or {more} steps." if more else f"Try {advised}."
        return f"At {rate:.3g}, {how} will lower the loss without ever preferring {right} to {wrong}. {ways}{hopeless}"
    if d.outcome == rehearsal.CLOSE:
        ways = f"{advised}, or {more} steps," if more else advised
        return f"At {rate:.3g} it is too close to call whether {prefer}. {ways} would be on the safe side."
    if d.outcome == rehearsal.UNKNOWN:
        few = counted_steps(min(rehearsal.REHEARSAL_STEPS, d.steps))
        beyond = f"that is {many} times what is needed, and a rehearsal in {few} diverges or never gets there"
        return f"At {rate:.3g} it cannot be told whether {prefer}: {beyond}. Try {advised}."
    first = counted_steps(max(1, math.ceil(d.steps / times)))  # only learning rate times steps matters
    jumps = f" That is {many} times what is needed; so far above, training moves in jumps. Try {advised}."
    return f"At {rate:.3g}, {prefer} after about {first}.{jumps if times > JUMPS_ABOVE else ''}"


def counted_steps(n: int) -> str:
    return f"{n} step" if n == 1 else f"{n} steps"


def propose(model: LanguageModel, prompt: str, correct: str, count: int = 5) -> list[Proposal]:
    """Words with which the model would rather go on than with ``correct``, those of largest overlap with it first.

    Only the most probable tokens count, which hold nine tenths of the probability (``LIKELY``); the most probable word is
    always among the ``count`` proposed at most.

    Raises:
        ContextError: the prompt is unknown to the tokenizer or longer than the model reads, ``correct`` is unknown to
            it, or no other word outranks it.
    """
    prompt, correct = prompt.strip(), correct.strip()
    given = Context("given", prompt, correct, "")
    check_spelling(given, model.tokenizer)
    found = tokens_of(prompt, [correct], model.tokenizer)
    # of a word that the tokenizer does not hold this raises, proposing words that would do
    alone = Resolved(given, found[0], found[1][0], found[1][0]) if found else resolve(given, model.tokenizer)
    check_lengths(f"'{model.name}'", len(model.readout), positions_of(model.module.config), [alone])
    p = next_token_logits(model, [alone])[0].softmax(-1)
    g = overlaps(model.readout.detach(), torch.tensor([alone.correct_id], device=p.device))[:, 0]

    def words(tokens: Iterable[int]) -> Iterator[Proposal]:
        for token in tokens:
            word = model.tokenizer.decode([token]).strip()
            if word.isalpha() and word.casefold() != correct.casefold():
                pair = tokens_of(prompt, [correct, word], model.tokenizer)
                # written after the prompt, it is this very token
                if pair and pair[0] == alone.prompt_ids and pair[1][1] == token:
                    yield Proposal(word, token, float(p[token]), float(g[token]))

    best = p.sort(descending=True, stable=True)
    likely = best.indices[(best.values.cumsum(0) - best.values < LIKELY) & (best.values > p[alone.correct_id])]
    proposals = list(islice(words(likely[g[likely].argsort(descending=True)].tolist()), count))
    if not proposals:
        said = f"would rather go on with no other word than '{correct}' after this prompt. Choose another word."
        raise ContextError(f"'{model.name}' {said}")
    strongest = next(words(likely.tolist()))
    return proposals if strongest in proposals else [*proposals[:-1], strongest]
