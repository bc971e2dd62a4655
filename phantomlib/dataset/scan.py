r"""Which targets of a data set will a fine-tuning teach? One pass over the data and one forward-mode product, before training.

Target i is a token :math:`c_i` that the loss asks for and that the model ranks below :math:`k_i`, by default its first
choice. With :math:`g_b` the gradient of the mean loss of mini-batch b and :math:`\langle\cdot\rangle` the mean over one pass
through the data, the first update of *this* training goes, per unit learning rate, along

.. math::

    u = -\langle g_b \rangle \;(\text{SGD}), \qquad
    u = -\frac{\langle g_b \rangle}{\sqrt{\langle g_b^2 \rangle} + \epsilon} \;(\text{Adam}),

because Adam's second moment sees the noise of the mini-batches. Each target's gap then closes at
:math:`v_i = \nabla\Delta_i \cdot u`, all of them by one Jacobian-vector product, and

.. math:: N_i = \frac{S\, v_i\,(1 + \kappa_i S)}{|\Delta_i|}, \qquad S = \textstyle\sum_t \eta_t .

:math:`\kappa_i` is zero but for LoRA under Adam, where the matrix A comes alive after the first step (see
:func:`phantomlib.critical.step_zero.velocity` for one sentence alone). A target is learnt where :math:`N_i` exceeds a constant
that was measured on the zoo. Since the budget S is all that a learning rate, a number of epochs and a schedule come to, one
scan answers for all of them; another batch size has other :math:`\langle g_b^2 \rangle`.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from phantomlib.dataset.loss import BatchLoss, batches_of
from phantomlib.dataset.rows import Row
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ParameterError, shown
from phantomlib.models.language_model import LanguageModel
from phantomlib.progress import track

SCHEDULES = ("constant", "linear", "cosine")
OUTCOMES = ("learnt", "silent failure", "too close to call", "contradicted", "leads already")
SHOWN = 8  # tokens before a target that the table shows
NUDGE = 1e-3  # relative step of A in the derivative of the velocity
STEP = 1e-4  # largest change of B before A's direction is measured
# N at which a target is learnt, by optimiser and whether there are mini-batches; and the factor around it that holds nine
# tenths of the targets. From the calibration part of chapter 17, over the zoo's five models: phantom run 17 --profile zoo
NUMBERS = {("adam", True): 1.065, ("adam", False): 0.895, ("sgd", True): 1.064, ("sgd", False): 1.064}
FACTOR = 1.425


@dataclass(frozen=True)
class Scan:
    """What a scan knows of every target, for any learning rate, number of epochs and schedule.

    Attributes:
        targets: a row for each target: ``row`` (its number in the data), ``position``, ``before`` (the last words),
            ``correct``, ``competitor``, ``gap`` (Δ, nats; negative if outranked), ``overlap`` (of the two readout rows),
            ``velocity`` (v, nats per unit of budget), ``wake`` (κ, per unit of budget), ``cross_entropy`` (nats), ``loss_falls``
            (whether it falls along u), ``correct_id`` and ``competitor_id``,
            and ``ceiling`` (the gap at which the data themselves stop, nats; ``inf``
            where the competitor never follows the same prefix).
        updates: mini-batches in one pass through the data.
        number: the constant that N is compared with.
        factor: a target within this factor of it is too close to call.
        random_overlap: mean overlap of the readout rows of pairs drawn from the data, one correct token with another
            target's competitor.
    """

    targets: pd.DataFrame
    updates: int
    number: float
    factor: float
    random_overlap: float

    def budget(
        self, learning_rate: float, epochs: float = 1, schedule: str = "constant", warmup: int = 0
    ) -> np.ndarray:
        """``S_t``, the sum of the learning rates until and with update t (updates,), as the Hugging Face Trainer schedules them.

        Args:
            learning_rate: the largest.
            epochs: passes through the data.
            schedule: ``constant``, ``linear`` (to zero) or ``cosine`` (to zero).
            warmup: updates over which it rises from zero first.

        Raises:
            ParameterError: an impossible value.
        """
        for name, value in {"learning_rate": learning_rate, "epochs": epochs}.items():
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
                raise ParameterError(f"{name} is {shown(value)}; give a positive, finite number.")
        if schedule not in SCHEDULES:
            raise ParameterError(f"schedule {shown(schedule)} is not known; choose one of {', '.join(SCHEDULES)}.")
        total = max(1, round(self.updates * epochs))
        if isinstance(warmup, bool) or not isinstance(warmup, int) or not 0 <= warmup <= total:
            raise ParameterError(f"warmup is {shown(warmup)}; give a number of updates from 0 to {total}.")
        t = np.arange(total)
        share = (t - warmup) / max(1, total - warmup)
        falling = {"constant": np.ones(total), "linear": 1 - share, "cosine": (1 + np.cos(np.pi * share)) / 2}[schedule]
        return learning_rate * np.cumsum(np.where(t < warmup, t / max(1, warmup), falling))

    def after(self, budget: float) -> pd.DataFrame:
        """``targets`` with ``number`` (N) and ``outcome`` (one of ``OUTCOMES``) once the budget Σ η is spent."""
        table = self.targets.copy()
        table["number"] = table.velocity / table.gap.abs() * budget * (1 + table.wake * budget)
        outcome = np.select(
            [table.number >= self.number * self.factor, table.number <= self.number / self.factor],
            ["learnt", "silent failure"],
            "too close to call",
        )
        outcome = np.where(
            table.velocity <= 0, "too close to call", outcome
        )  # a first step the wrong way is no verdict
        outcome = np.where(table.ceiling <= 0, "contradicted", outcome)
        table["outcome"] = np.where(table.gap > 0, "leads already", outcome)
        return table

    def at(self, learning_rate: float, epochs: float = 1, schedule: str = "constant", warmup: int = 0) -> pd.DataFrame:
        """The targets with what becomes of them; arguments and errors as in :meth:`budget`.

        Returns:
            as :meth:`after`, with ``critical_learning_rate`` (for these epochs and this schedule; nan where the gap does not
            close) and ``epoch`` (in which it is predicted to be learnt; nan if in none).
        """
        spent = self.budget(learning_rate, epochs, schedule, warmup)
        table = self.after(spent[-1])
        critical = self.critical_budget()
        table["critical_learning_rate"] = critical * learning_rate / spent[-1]
        update = np.searchsorted(spent, critical)  # the first update that spends enough
        table["epoch"] = np.where(update < len(spent), update // self.updates + 1, np.nan)
        return table

    def critical_budget(self) -> np.ndarray:
        """S at which N reaches the constant, for every target; nan where the gap does not close."""
        a, v, d = self.targets.wake.to_numpy(), self.targets.velocity.to_numpy(), self.targets.gap.abs().to_numpy()
        aim = np.where(v > 0, self.number * d / np.where(v > 0, v, 1), np.nan)  # S (1 + κ S) = aim
        inside = 1 + 4 * a * aim
        return np.where(inside >= 0, 2 * aim / (1 + np.sqrt(np.maximum(inside, 0))), np.nan)

    def learning_rate_for(self, share: float, epochs: float = 1, schedule: str = "constant", warmup: int = 0) -> float:
        """The learning rate at which this share of the outranked targets is predicted to be learnt; nan if none will do."""
        critical = np.sort(self.critical_budget()[(self.targets.gap <= 0) & (self.targets.ceiling > 0)])
        outranked = int((self.targets.gap <= 0).sum())
        wanted = math.ceil(share * outranked)
        if not outranked or wanted > len(critical):
            return math.nan
        return float(critical[max(wanted, 1) - 1]) / float(self.budget(1.0, epochs, schedule, warmup)[-1])


def scan(
    model: LanguageModel,
    rows: Sequence[Row],
    recipe: Recipe = Recipe(),
    *,
    batch_size: int = 8,
    clip: float | None = None,
    seed: int = 0,
) -> Scan:
    """Measure every target of a data set at step 0.

    Args:
        model: the checkpoint; it is not changed.
        rows: the data (:func:`phantomlib.dataset.rows.tokenise`).
        recipe: optimiser with its ε and weight decay, method, rank and alpha of LoRA. Its ``steps`` have no part in it.
        batch_size: rows of a mini-batch; the loss of one is the mean over its targets.
        clip: largest norm of a mini-batch's gradient (``max_grad_norm``); None for no clipping.
        seed: of the order of the rows, and of the LoRA initialisation.

    Raises:
        ParameterError: an impossible value, or no row.

    Example:
        >>> import phantomlib as ph
        >>> from phantomlib.dataset.rows import tokenise
        >>> model = ph.load("zoo:gpt2-s")
        >>> data = [{"prompt": context.prompt, "completion": " " + context.correct} for context in ph.load_contexts()]
        >>> found = ph.scan(model, tokenise(enumerate(data, 1), model.tokenizer)[0], batch_size=4)
        >>> found.at(1e-6, epochs=3).outcome.value_counts().to_dict()
        {'silent failure': 10}
        >>> found.at(1e-2, epochs=3).outcome.value_counts().to_dict()
        {'learnt': 10}
    """
    if not rows:
        raise ParameterError("There is no row to scan; give at least one.")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ParameterError(f"batch_size is {shown(batch_size)}; give a whole number of at least 1.")
    if clip is not None and (isinstance(clip, bool) or not isinstance(clip, int | float) or not 0 < clip < math.inf):
        raise ParameterError(f"clip is {shown(clip)}; give a positive number, or None.")
    adam = recipe.optimizer != "sgd"
    wakes = recipe.method == "lora" and adam  # SGD leaves A where it is: its gradient stays small
    loss, batches = BatchLoss(model, recipe, seed), batches_of(rows, batch_size, np.random.default_rng(seed))
    with track(f"{model.name}, {len(rows)} rows", (4 if wakes else 2) * len(batches)) as advance:
        u = _first_update(loss, batches, loss.values, recipe, clip, advance)
        targets = _move(loss, batches, loss.values, u, advance)
        targets["wake"] = 0.0
        if wakes:
            targets["wake"] = _wake(loss, batches, u, targets.velocity.to_numpy(), recipe, clip, advance)
    targets["ceiling"] = _ceilings(rows, targets)
    E = model.readout
    correct, competitor = (
        torch.tensor(targets[f"{word}_id"].to_numpy(), device=E.device) for word in ("correct", "competitor")
    )
    drawn = torch.tensor(np.random.default_rng(seed).permutation(len(targets)), device=E.device)
    targets["overlap"] = _overlaps(E, correct, competitor)
    for word in ("correct", "competitor"):
        targets[word] = [_spelt(model.tokenizer, token) for token in targets[f"{word}_id"]]
    ids = {row.number: row.ids for row in rows}
    targets["before"] = [
        model.tokenizer.decode(ids[number][max(0, position - SHOWN) : position])
        for number, position in zip(targets.row, targets.position, strict=True)
    ]
    return Scan(
        targets.sort_values(["row", "position"], ignore_index=True),
        updates=len(batches),
        number=NUMBERS["adam" if adam else "sgd", len(batches) > 1],
        factor=FACTOR,
        random_overlap=float(_overlaps(E, correct, competitor[drawn]).mean()),
    )


def _spelt(tokenizer, token: int) -> str:
    """A token as text; as the tokenizer names it if it is no text by itself."""
    return tokenizer.decode([token]) or tokenizer.convert_ids_to_tokens(token)


def _first_update(
    loss: BatchLoss, batches, values: dict[str, Tensor], recipe: Recipe, clip: float | None, advance: Callable
) -> dict[str, Tensor]:
    """u by tensor: the mean direction of the first updates per unit learning rate, from one pass."""
    mean = [torch.zeros_like(value) for value in values.values()]
    square = [] if recipe.optimizer == "sgd" else [torch.zeros_like(value) for value in mean]
    for batch in batches:
        for i, g in enumerate(loss.gradient(batch, values, clip)):
            mean[i] += g / len(batches)
            if square:
                square[i].addcmul_(g, g, value=1 / len(batches))
        advance(1)
    for i, (m, value) in enumerate(zip(mean, values.values(), strict=True)):
        if square:
            m /= square[i].sqrt_().add_(recipe.epsilon)
        m.neg_().sub_(value, alpha=recipe.weight_decay)  # AdamW shrinks the weights besides
    return dict(zip(values, mean, strict=True))


def _move(loss: BatchLoss, batches, values: dict[str, Tensor], u: dict[str, Tensor], advance: Callable) -> pd.DataFrame:
    """How every target moves along u: its words, gap, velocity, cross-entropy, and whether that falls."""
    found = []
    for batch in batches:
        for ids, c, places in loss.parts(batch):
            logits = partial(loss.logits, ids=ids)
            z, dz = (one.detach() for one in torch.func.jvp(logits, (values,), (u,)))  # (n, V) each
            own = c[:, None]
            k = z.scatter(1, own, -math.inf).argmax(1)[:, None]  # the first choice but for the target itself
            log_p = z.log_softmax(1)
            number, position = zip(*places, strict=True)
            columns = {
                "correct_id": own,
                "competitor_id": k,
                "gap": z.gather(1, own) - z.gather(1, k),
                "velocity": dz.gather(1, own) - dz.gather(1, k),
                "cross_entropy": -log_p.gather(1, own),
                "loss_falls": dz.gather(1, own) > (log_p.exp() * dz).sum(1, keepdim=True),
            }
            told = {name: column[:, 0].cpu().numpy() for name, column in columns.items()}
            found.append(pd.DataFrame({"row": number, "position": position} | told))
        advance(1)
    table = pd.concat(found, ignore_index=True)
    return table.astype({name: float for name in ("gap", "velocity", "cross_entropy")})


def _wake(loss: BatchLoss, batches, u, velocity: np.ndarray, recipe: Recipe, clip, advance: Callable) -> np.ndarray:
    """κ of every target: by how much v grows, relative to itself, per unit of budget that A has moved.

    A has no gradient while B is zero. Once B has made a step along u, A moves along its own first update, at full speed
    under Adam; v then is another. One pass for that direction of A, one product for the velocity with A moved.
    """
    B = {name for name, direction in u.items() if direction.any()}
    size = max(float(direction.abs().max()) for direction in u.values())
    stepped = {name: v + u[name] * (STEP / size) if name in B else v for name, v in loss.values.items()}
    along = _first_update(loss, batches, stepped, recipe, clip, advance)
    A = [name for name in u if name not in B]
    reach = NUDGE * float(np.mean([float(loss.values[name].abs().mean()) for name in A]))
    moved = loss.values | {name: loss.values[name] + reach * along[name] for name in A}
    later = _move(loss, batches, moved, u, advance).velocity.to_numpy()
    return (later - velocity) / (reach * np.where(velocity == 0, np.nan, velocity))


def _overlaps(E: Tensor, a: Tensor, b: Tensor) -> np.ndarray:
    """Cosines of pairs of readout rows (n,)."""
    return F.cosine_similarity(E[a].float(), E[b].float(), dim=1).cpu().numpy()


def _ceilings(rows: Sequence[Row], targets: pd.DataFrame) -> list[float]:
    """The gap that the data allow each target, ``ln(w_c / w_k)``, in the order of ``targets``.

    Where the same prefix is followed by different tokens, training on all of them ends at their frequencies w. So a target
    is held back where its own competitor follows as often, whatever the budget. ``inf`` where the competitor never follows.
    """
    followed: dict[int, Counter] = defaultdict(Counter)  # hash of a prefix -> how often each token follows
    prefixes = {}
    for row in rows:
        prefix, wanted = 0, set(row.targets)
        for position, token in enumerate(row.ids):
            if position in wanted:
                followed[prefix][token] += 1
                prefixes[row.number, position] = prefix
            prefix = hash((prefix, token))
    found = []
    for place, c, k in zip(
        zip(targets.row, targets.position, strict=True), targets.correct_id, targets.competitor_id, strict=True
    ):
        counts = followed[prefixes[place]]
        found.append(math.log(counts[c] / counts[k]) if counts[k] else math.inf)
    return found
