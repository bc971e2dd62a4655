"""How to fine-tune: the recipe, and what contexts, learning rates and seeds must be like."""

import math
from dataclasses import asdict
from typing import Annotated
from weakref import WeakKeyDictionary

import numpy as np
from pydantic import ConfigDict, Field, GetPydanticSchema, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core.core_schema import literal_schema

from phantomlib.contexts import Context, Resolved, check_resolved, resolve
from phantomlib.engine.loss import LOSSES
from phantomlib.errors import ContextError, ParameterError, all_at_once, shown
from phantomlib.models.language_model import LanguageModel, next_token_logits

MOST_STEPS = 10**9  # what is recorded of more would fit no memory
Whole = Annotated[int, Field(ge=1, le=MOST_STEPS)]
Share = Annotated[float, Field(ge=0, lt=1)]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
REAL = int | float | np.integer | np.floating
_checked: WeakKeyDictionary = WeakKeyDictionary()  # module -> the contexts that check_contexts found to fit it


def one_of(*values) -> GetPydanticSchema:
    return GetPydanticSchema(lambda kind, handler: literal_schema(list(values)))


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Recipe:
    """How to fine-tune; with the model, contexts and learning rates it determines every number of a run.

    Attributes:
        optimizer: ``sgd`` (plain), ``adam`` or ``adamw`` (decoupled weight decay), as in ``torch.optim``.
        method: ``full`` (all parameters) or ``lora`` (adapters on all linear layers but the readout).
        steps: number of updates T.
        weight_decay: only for ``adamw``.
        beta1, beta2, epsilon: of Adam and AdamW.
        rank, alpha: of LoRA.
        exponent: power of the overlap in Φ.
        geometry: whose rows give the overlaps, ``readout`` (the unembedding) or ``input`` (the token embedding).
        snapshots: steps at which the spectrum of ρ is recorded.
        loss: what is minimised, ``cross-entropy`` or one that looks at the competitor: ``margin``, ``unlikelihood``,
            ``gap`` (:mod:`phantomlib.engine.loss`).
        weight: λ of the term that looks at the competitor; positive.

    Example:
        >>> import phantomlib as ph
        >>> ph.Recipe(optimizer="sgd", steps=20).method
        'full'
    """

    optimizer: Annotated[str, one_of("sgd", "adam", "adamw")] = "adam"
    method: Annotated[str, one_of("full", "lora")] = "full"
    steps: Whole = 30
    weight_decay: Number = 0.0
    beta1: Share = 0.9
    beta2: Share = 0.999
    epsilon: Number = 1e-8
    rank: Whole = 8
    alpha: Number = 16.0
    exponent: Annotated[int, one_of(1, 2)] = 2
    geometry: Annotated[str, one_of("readout", "input")] = "readout"
    snapshots: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)] = ()  # a list will do
    loss: Annotated[str, one_of(*LOSSES)] = "cross-entropy"
    weight: Annotated[Number, Field(gt=0)] = 1.0

    @model_validator(mode="wrap")
    @classmethod
    def _one_paragraph(cls, values, check):
        """What pydantic finds wrong first, as a ParameterError that names the value and a way out."""
        try:
            return check(values)
        except ValidationError as error:
            wrong = error.errors(include_url=False)[0]
            name = "".join(f"[{part}]" if isinstance(part, int) else part for part in wrong["loc"])
            expected = wrong.get("ctx", {}).get("expected", "").replace("'", "").replace(" or ", ", ")
            way_out = f"choose one of {expected}" if expected else wrong["msg"].replace("Input", "it", 1)
            raise ParameterError(f"{name} is {shown(wrong['input'])}; {way_out}.") from None

    def __post_init__(self):
        if self.weight_decay and self.optimizer != "adamw":
            raise ParameterError(f"weight_decay {self.weight_decay} needs optimizer 'adamw', not '{self.optimizer}'.")
        if self.weight != 1 and self.loss == "cross-entropy":
            said = "is of a loss that looks at the competitor; choose one, or leave it out."
            raise ParameterError(f"weight {self.weight} {said}")
        if max(self.snapshots, default=0) > self.steps or len(set(self.snapshots)) < len(self.snapshots):
            said = f"must be steps from 0 to {self.steps}, each named once."
            raise ParameterError(f"snapshots {shown(self.snapshots)} {said}")

    def settings(self) -> dict:
        """Everything that names a run; cross-entropy goes without saying, as in runs made before there was a choice."""
        unsaid = ("loss", "weight") if self.loss == "cross-entropy" else ()
        return {name: value for name, value in asdict(self).items() if name not in unsaid}


def check_learning_rates(learning_rates, contexts: int, steps: int | None = None) -> np.ndarray:
    """Learning rates, given as (rates,) for all C contexts or as they come back: (C, rates), or schedules (C, rates, steps).

    ParameterError if they are empty, not numbers, not all positive and finite, or of the wrong shape.
    """
    try:
        flat = np.ravel(np.asarray(learning_rates, dtype=object))
        right = len(flat) and all(isinstance(v, REAL) and not isinstance(v, bool) for v in flat)
        rates = np.asarray(learning_rates if right else math.nan, dtype=float)
    except (ValueError, OverflowError):  # rows of different lengths; a whole number beyond the largest float
        rates = np.array(math.nan)
    if rates.ndim == 0 or not np.isfinite(rates).all() or (rates <= 0).any():
        said = "must be a non-empty list of positive, finite numbers, such as [1e-4, 3e-4]."
        raise ParameterError(f"learning rates {shown(learning_rates)} {said}")
    if rates.ndim == 1:
        rates = np.tile(rates, (contexts, 1))
    if (len(rates), *rates.shape[2:]) not in ((contexts,), (contexts, steps)):
        each = f", or ({contexts} contexts, rates, {steps} steps) for schedules" if steps else ""
        said = f"do not fit; give (rates,) or ({contexts} contexts, rates){each}."
        raise ParameterError(f"learning rates of shape {rates.shape} {said}")
    return rates


def check_seeds(seeds, recipe: Recipe) -> None:
    """Raise ParameterError unless ``seeds`` are whole numbers from 0 to 2**63 - 1: one, or with LoRA several."""
    if not isinstance(seeds, list | tuple) or not seeds or any(type(s) is not int or not 0 <= s < 2**63 for s in seeds):
        said = "give a list of whole numbers of at least 0 and below 2**63, such as [0, 1]."
        raise ParameterError(f"seeds is {shown(seeds)}; {said}")
    if recipe.method == "full" and len(seeds) > 1:
        raise ParameterError(f"seeds is {shown(seeds)}, but full fine-tuning draws nothing; give one, such as [0].")


def check_lengths(reader: str, vocabulary: int, positions: float, contexts: list[Resolved]) -> None:
    """Refuse contexts with more tokens than ``positions`` or ids beyond the ``vocabulary``: ContextError that names all."""
    problems = []
    for context in contexts:
        said, length = "", len(context.prompt_ids)
        if max(*context.prompt_ids, context.correct_id, context.competitor_id) >= vocabulary:
            said = f"has token ids beyond the {vocabulary} of the vocabulary of {reader}; resolve it with the model's own tokenizer"
        elif length > positions:
            said = f"has {length} tokens, but {reader} reads no more than {positions}; shorten its prompt"
        problems += [ContextError(f"Context '{context.id}' {said}.")] if said else []
    all_at_once(problems, f"in {len(contexts)} contexts")


def positions_of(config) -> float:
    """Longest text that a model with this configuration reads, in tokens; ``inf`` if it has no limit."""
    return getattr(config, "max_position_embeddings", None) or math.inf


def fitting_contexts(model: LanguageModel, contexts: list[Context]) -> tuple[list[Resolved], list[ContextError]]:
    """The contexts that fit a model, as its ids, and why the others do not."""
    found, refused = [], []
    for context in contexts:
        try:
            one = resolve(context, model.tokenizer)
            check_contexts(model, [one])
            found.append(one)
        except ContextError as error:
            refused.append(error)
    return found, refused


def check_contexts(model: LanguageModel, contexts: list[Resolved]) -> None:
    """Refuse contexts that do not fit the model, or whose competitor does not lead: ContextError that names them."""
    check_resolved(contexts)
    if not contexts:
        raise ContextError("There is no context to learn; give at least one.")
    known = _checked.setdefault(model.module, set())
    contexts = [context for context in contexts if context not in known]
    check_lengths(f"'{model.name}'", len(model.readout), positions_of(model.module.config), contexts)
    problems = []
    for context in contexts:
        z = next_token_logits(model, [context])[0]
        gap = float(z[context.correct_id] - z[context.competitor_id])
        right, wrong = shown(context.context.correct), shown(context.context.competitor)
        if gap < 0:
            known.add(context)
            continue
        said = f"already prefers {right} to {wrong} before training (logit gap {gap:+.2g} nats)"
        if math.isnan(gap):
            said = f"computes no finite logits for {right} and {wrong}"
        elif gap == 0:
            said = f"gives {right} and {wrong} the same logit before training, a tie (logit gap 0 nats)"
        way_out = f"Choose a competitor that the model prefers{', or exchange the two words' if gap else ''}."
        said = f"'{model.name}' {said}, so there is nothing to overtake. {way_out}"
        problems.append(ContextError(f"Context '{context.id}': {said}"))
    all_at_once(problems, f"in {len(contexts)} contexts")
