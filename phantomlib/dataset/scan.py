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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from phantomlib.dataset.rows import Row
from phantomlib.engine.finetune import trainable
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ParameterError, shown
from phantomlib.models.language_model import LanguageModel, share_tensors
from phantomlib.progress import track

SCHEDULES = ("constant", "linear", "cosine")
OUTCOMES = ("learnt", "silent failure", "too close to call", "contradicted", "leads already")
LOGITS = 2**26  # numbers of a block of logits (256 MB): rows of a mini-batch are taken in parts of at most so many
NUDGE = 1e-3  # relative step of A in the derivative of the velocity
# N at which a target is learnt, for mini-batches and for one batch, and the factor by which a target's own may differ. Not
# calibrated yet: from prototypes on small models (mini-batches 1.03 to 1.24; one batch .85 to .97 with Adam, 1.03 to 1.07
# with SGD; late drift up to 1.4).
NUMBERS = {("adam", True): 1.15, ("adam", False): 0.91, ("sgd", True): 1.05, ("sgd", False): 1.05}
FACTOR = 1.4


@dataclass(frozen=True)
class Scan:
    """What a scan knows of every target, for any learning rate, number of epochs and schedule.

    Attributes:
        targets: a row for each target: ``row`` (its number in the data), ``position``, ``before`` (the last words),
            ``correct``, ``competitor``, ``gap`` (Δ, nats; negative if outranked), ``overlap`` (of the two readout rows),
            ``velocity`` (v, nats per unit of budget), ``wake`` (κ, per unit of budget), ``loss_falls`` (whether its
            cross-entropy falls along u), and ``ceiling`` (the gap at which the data themselves stop, nats; ``inf``
            where the same prefix has no other target).
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

    def at(self, learning_rate: float, epochs: float = 1, schedule: str = "constant", warmup: int = 0) -> pd.DataFrame:
        """The targets with what becomes of them; arguments and errors as in :meth:`budget`.

        Returns:
            ``targets`` with ``number`` (N), ``critical_learning_rate`` (for these epochs and this schedule; nan where the
            gap does not close), ``epoch`` (in which it is predicted to be learnt; nan if in none) and ``outcome`` (one of
            ``OUTCOMES``).
        """
        spent = self.budget(learning_rate, epochs, schedule, warmup)
        table = self.targets.copy()
        closing = table.velocity / table.gap.abs()  # per unit of budget
        table["number"] = closing * spent[-1] * (1 + table.wake * spent[-1])
        critical = self.critical_budget()
        table["critical_learning_rate"] = critical * learning_rate / spent[-1]
        update = np.searchsorted(spent, critical)  # the first update that spends enough
        table["epoch"] = np.where(update < len(spent), update // self.updates + 1, np.nan)
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
        >>> found = scan(model, tokenise(enumerate(data, 1), model.tokenizer)[0], batch_size=4)
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
    training = _Training(model, recipe, seed)
    order = np.random.default_rng(seed).permutation(len(rows))
    batches = [[rows[i] for i in order[start : start + batch_size]] for start in range(0, len(rows), batch_size)]
    passes = 3 if recipe.method == "lora" and adam else 1
    with track(f"{model.name}, {len(rows)} rows", (passes + passes) * len(batches)) as advance:
        u = training.first_update(batches, clip, advance)
        targets = training.move(batches, u, advance)
        wake = np.zeros(len(targets))
        if passes > 1:
            wake = training.wake(batches, u, targets.velocity.to_numpy(), clip, advance)
    targets["wake"] = wake
    ceilings = _ceilings(rows)
    targets["ceiling"] = [ceilings[place] for place in zip(targets.row, targets.position, strict=True)]
    E = model.readout
    correct, competitor = (torch.tensor(targets[name].to_numpy(), device=E.device) for name in ("c", "k"))
    drawn = torch.tensor(np.random.default_rng(seed).permutation(len(targets)), device=E.device)
    targets["overlap"] = _overlaps(E, correct, competitor)
    spell = model.tokenizer.convert_ids_to_tokens
    decoded = {int(i): model.tokenizer.decode([i]) or spell(int(i)) for i in {*targets.c, *targets.k}}
    told = targets.assign(correct=targets.c.map(decoded), competitor=targets.k.map(decoded))
    texts = {row.number: row.ids for row in rows}
    told["before"] = [
        model.tokenizer.decode(texts[number][max(0, position - 8) : position])
        for number, position in zip(told.row, told.position, strict=True)
    ]
    columns = [
        "row",
        "position",
        "before",
        "correct",
        "competitor",
        "gap",
        "overlap",
        "velocity",
        "wake",
        "loss_falls",
        "ceiling",
    ]
    return Scan(
        told.sort_values(["row", "position"], ignore_index=True)[columns],
        updates=len(batches),
        number=NUMBERS["adam" if adam else "sgd", len(batches) > 1],
        factor=FACTOR,
        random_overlap=float(_overlaps(E, correct, competitor[drawn]).mean()),
    )


class _Training:
    """The loss of mini-batches as a function of the trainable tensors."""

    def __init__(self, model: LanguageModel, recipe: Recipe, seed: int):
        module, values = trainable(model, recipe, seed)
        self.recipe, self.device, self.vocabulary = recipe, model.device, len(model.readout)
        self.module = share_tensors(module)
        self.chosen: tuple[Tensor, Tensor] | None = None  # rows and positions whose logits are wanted
        # the readout sees the positions before a target only: (R, L, d) -> (1, n, d)
        self.module.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0][self.chosen][None],))
        self.values = {name: value.detach() for name, value in values.items()}

    def parts(self, batch: list[Row]) -> Iterator[tuple[Tensor, Tensor, list[tuple[int, int]]]]:
        """A mini-batch in blocks that fit: ids (R, L), targets' ids (n,), and (row, position) of each; sets ``chosen``."""
        block: list[Row] = []
        for row in [*batch, None]:
            size = sum(len(one.targets) for one in [*block, row] if one) * self.vocabulary
            if block and (row is None or size > LOGITS):
                longest = max(len(one.ids) for one in block)
                ids = torch.tensor([[*one.ids, *[0] * (longest - len(one.ids))] for one in block], device=self.device)
                places = [(i, t) for i, one in enumerate(block) for t in one.targets]
                at, position = torch.tensor(places, device=self.device).T
                self.chosen = (at, position - 1)
                yield ids, ids[at, position], [(block[i].number, t) for i, t in places]
                block = []
            if row is not None:
                block.append(row)

    def logits(self, values: dict[str, Tensor], ids: Tensor) -> Tensor:
        """Next-token logits (n, V) at the chosen positions."""
        return torch.func.functional_call(self.module, values, (ids,), {"use_cache": False}).logits[0]

    def gradient(self, batch: list[Row], clip: float | None, moved: dict[str, Tensor]) -> list[Tensor]:
        """Gradient of the mean loss over the targets of a mini-batch, clipped."""
        leaves = {name: value.detach().requires_grad_() for name, value in (self.values | moved).items()}
        total = sum(len(row.targets) for row in batch)
        found = [torch.zeros_like(value) for value in leaves.values()]
        for ids, wanted, _ in self.parts(batch):
            loss = F.cross_entropy(self.logits(leaves, ids), wanted, reduction="sum") / total
            for g, part in zip(found, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True), strict=True):
                if part is not None:
                    g += part
        if clip is not None:
            torch.nn.utils.clip_grads_with_norm_(_holding(found), clip, torch.nn.utils.get_total_norm(found))
        return found

    def first_update(
        self, batches, clip: float | None, advance: Callable, moved: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """u by tensor: the mean direction of the first updates per unit learning rate, from one pass."""
        mean = [torch.zeros_like(value) for value in self.values.values()]
        square = [] if self.recipe.optimizer == "sgd" else [torch.zeros_like(value) for value in mean]
        for batch in batches:
            for i, g in enumerate(self.gradient(batch, clip, moved or {})):
                mean[i] += g / len(batches)
                if square:
                    square[i].addcmul_(g, g, value=1 / len(batches))
            advance(1)
        for i, (m, value) in enumerate(zip(mean, self.values.values(), strict=True)):
            if square:
                m /= square[i].sqrt_().add_(self.recipe.epsilon)
            m.neg_().sub_(value, alpha=self.recipe.weight_decay)  # AdamW shrinks the weights besides
        return dict(zip(self.values, mean, strict=True))

    def move(
        self, batches, u: dict[str, Tensor], advance: Callable, moved: dict[str, Tensor] | None = None
    ) -> pd.DataFrame:
        """How every target moves along u: gap, velocity, whether its loss falls, and the ids of its two words."""
        values, found = self.values | (moved or {}), list[pd.DataFrame]()
        for batch in batches:
            for ids, c, places in self.parts(batch):
                logits = partial(self.logits, ids=ids)
                z, dz = (one.detach() for one in torch.func.jvp(logits, (values,), (u,)))  # (n, V) each
                own = c[:, None]
                k = z.scatter(1, own, -math.inf).argmax(1)[:, None]  # the first choice but for the target itself
                p = z.softmax(1)
                falls = dz.gather(1, own)[:, 0] > (p * dz).sum(1)
                columns = (z.gather(1, own) - z.gather(1, k), dz.gather(1, own) - dz.gather(1, k))
                gap, velocity = (column[:, 0].double().cpu().numpy() for column in columns)
                number, position = zip(*places, strict=True)
                part = {"row": number, "position": position, "gap": gap, "velocity": velocity}
                ids_of = {"loss_falls": falls.cpu().numpy(), "c": c.cpu().numpy(), "k": k[:, 0].cpu().numpy()}
                found.append(pd.DataFrame(part | ids_of))
            advance(1)
        return pd.concat(found, ignore_index=True)

    def wake(
        self, batches, u: dict[str, Tensor], velocity: np.ndarray, clip: float | None, advance: Callable
    ) -> np.ndarray:
        """κ of every target: by how much v grows, relative to itself, per unit of budget that A has moved.

        A has no gradient while B is zero. Once B has made a step along u, A moves along its own first update, at full speed
        under Adam; v then is another. One pass for that direction of A, one product for the derivative of v along it.
        """
        first = {name for name, direction in u.items() if direction.any()}  # the tensors B
        size = max(float(direction.abs().max()) for direction in u.values())
        stepped = {name: self.values[name] + u[name] * (1e-4 / size) for name in first}
        along = self.first_update(batches, clip, advance, stepped)
        reach = NUDGE * float(np.mean([float(self.values[name].abs().mean()) for name in along.keys() - first]))
        moved = {name: self.values[name] + reach * along[name] for name in along.keys() - first}
        later = self.move(batches, u, advance, moved).velocity.to_numpy()
        return (later - velocity) / (reach * np.where(velocity == 0, np.nan, velocity))


def _holding(gradients: list[Tensor]) -> list[Tensor]:
    """Tensors that hold these gradients, as torch's own clipping wants them."""
    held = [torch.empty_like(g) for g in gradients]
    for one, g in zip(held, gradients, strict=True):
        one.grad = g
    return held


def _overlaps(E: Tensor, a: Tensor, b: Tensor) -> np.ndarray:
    """Cosines of pairs of readout rows (n,)."""
    return F.cosine_similarity(E[a].float(), E[b].float(), dim=1).cpu().numpy()


def _ceilings(rows: Sequence[Row]) -> dict[tuple[int, int], float]:
    """The gap that the data allow each target, by row and position: ``ln(w_c / w_o)``.

    Where the same prefix is followed by different tokens, training on all of them ends at their frequencies w: a token is
    held back by the most frequent other one, whatever the budget. ``inf`` without another.
    """
    followed: dict[int, Counter] = defaultdict(Counter)  # hash of a prefix -> how often each token follows
    places = []
    for row in rows:
        prefix, wanted = 0, set(row.targets)
        for position, token in enumerate(row.ids):
            if position in wanted:
                followed[prefix][token] += 1
                places.append((row.number, position, prefix, token))
            prefix = hash((prefix, token))
    found = {}
    for number, position, prefix, token in places:
        others = [count for other, count in followed[prefix].items() if other != token]
        found[number, position] = math.log(followed[prefix][token] / max(others)) if others else math.inf
    return found
