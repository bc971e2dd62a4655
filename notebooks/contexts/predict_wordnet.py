"""Step 0 of natural sentences on a model, and the critical learning rates predicted from it, before any of them is trained on.

The rule. A sentence of ``contexts: wordnet`` fits a model if its correct word and a competitor are one token each and the
model prefers that competitor; of several the one it likes best. The sample is the first COUNT sentences of a random order
of those that fit. A critical learning rate is predicted by the rung *quadrature* as it is, without calibration, and
its interval is a factor of ``exp(SCATTER (|ln(quadrature / second order)| + LEAST))``. Rule and interval come from chapter
13: there this interval holds nine tenths of the sentences.

    python notebooks/contexts/predict_wordnet.py pretrained:smollm2-135m 60 adam runs/pretrained

Predict for LoRA after the critical rates under full fine-tuning were measured with Adam, and before LoRA's are. For each of
the first COUNT sentences two rates are predicted, by ``N (1 + eta (T - 1) kappa) = N_c``: with N_c of the sentence itself
(``own``), and with the geometric mean of N_c over all other sentences of the sample (``model``).

    python notebooks/contexts/predict_wordnet.py pretrained:smollm2-135m 10 lora runs/pretrained

The tables go to the store's folder ``tables``, as ``wordnet-MODEL`` and ``wordnet-MODEL-OPTIMIZER``. Publish and commit them
before the sentences are trained on: chapter 16 measures nothing that no commit predicts.
"""

import sys
from collections import defaultdict

import numpy as np
import pandas as pd
import torch
from scipy.stats import gmean

from phantombook import published_runs
from phantomlib.contexts import Resolved, load_contexts, single_tokens
from phantomlib.critical import step_zero
from phantomlib.critical.predictors import predict_critical_rates
from phantomlib.critical.scaling import kinematic_number, lora_critical_rate
from phantomlib.engine.recipe import Recipe
from phantomlib.models.language_model import LanguageModel, load, next_token_logits
from phantomlib.readout_geometry import pair_overlaps
from phantomlib.runs.store import Store

STEPS = 20
SEED = 16  # of the order
SCATTER, LEAST = 1.31, 0.005


def fitting_sentences(model: LanguageModel) -> tuple[list[Resolved], pd.DataFrame]:
    """The sentences that fit a model, in the list's order, and what the untouched model says of each."""
    sentences = defaultdict(list)
    for context in load_contexts("wordnet"):
        if found := single_tokens(context.prompt, (context.correct, context.competitor), model.tokenizer):
            prompt_ids, (correct_id, competitor_id) = found
            if correct_id != competitor_id:
                one = Resolved(context, prompt_ids, correct_id, competitor_id)
                sentences[prompt_ids, correct_id].append(one)
    found, rows = [], []
    for (_, correct_id), candidates in sentences.items():
        z = next_token_logits(model, candidates[:1])[0].double()
        best = max(candidates, key=lambda one: float(z[one.competitor_id]))
        gap = float(z[correct_id] - z[best.competitor_id])
        if gap < 0:
            rank = int((z > z[correct_id]).sum()) + 1
            found.append(best)
            rows.append({"context": best.id, "gap": gap, "rank": rank, "p_c": float(z.softmax(0)[correct_id])})
    return found, pd.DataFrame(rows).assign(overlap=pair_overlaps(model.readout, found))


def predicted(store: Store, model: LanguageModel, sample: list[Resolved], optimizer: str) -> pd.DataFrame:
    """A row for each sentence of the sample: all that names it, its first velocity, and the prediction."""
    recipe = Recipe(optimizer=optimizer, steps=STEPS)
    parts = [predict_critical_rates(store, model, [one], recipe) for one in sample]  # each is kept as it is there
    ladder = pd.concat([part.to_dataframe() for part in parts]).reset_index()
    away = np.log(ladder.quadrature / ladder.second_order).abs()
    factor = np.exp(SCATTER * (away + LEAST))
    named = [
        {"prompt": one.context.prompt, "correct": one.context.correct, "competitor": one.context.competitor}
        | {"prompt_ids": list(one.prompt_ids), "correct_id": one.correct_id, "competitor_id": one.competitor_id}
        for one in sample
    ]
    ladder["velocity_0"] = step_zero.velocity(model, sample, recipe).velocity.numpy()
    rates = {"predicted": ladder.quadrature, "low": ladder.quadrature / factor, "high": ladder.quadrature * factor}
    return pd.concat([ladder, pd.DataFrame(named)], axis=1).assign(**rates)


def predicted_lora(store: Store, model: LanguageModel, count: int) -> pd.DataFrame:
    """A row for each of the first sentences of the measured sample: all that names it, and two predictions."""
    name = f"wordnet-{model.name}-adam"
    tables = [published_runs.table(store, part, None, store.root) for part in (name, f"{name}-measured")]
    sample = tables[0].merge(tables[1][["context", "critical_rate"]], on="context")
    sample["number"] = kinematic_number(sample.critical_rate, STEPS, sample.velocity_0, sample.gap)
    first, others = sample.head(count), sample.number[count:]
    recipe, fits = Recipe(method="lora", steps=STEPS), published_runs.resolved(first)
    start = step_zero.velocity(model, fits, recipe)
    growth = step_zero.velocity_growth(model, fits, recipe).numpy()
    options = (STEPS, start.velocity.numpy(), start.gap.numpy(), growth)
    constants = {"own": first.number.to_numpy(), "model": gmean(others[others > 0])}
    rates = {name: lora_critical_rate(number, *options) for name, number in constants.items()}
    return first[[*published_runs.NAMED, "number"]].assign(growth=growth, **rates)


def main(ref: str, count: str, optimizer: str, folder: str) -> None:
    torch.set_num_threads(1)
    store, model = Store(folder), load(ref)
    if optimizer == "lora":
        found = predicted_lora(store, model, int(count))
        published_runs.table(store, f"wordnet-{model.name}-lora", found, "")
        return
    fitting, table = fitting_sentences(model)
    print(f"{len(fitting)} sentences fit {model.name}.")
    published_runs.table(store, f"wordnet-{model.name}", table, "")
    order = np.random.default_rng(SEED).permutation(len(fitting))[: int(count)]
    sample = [fitting[i] for i in order]
    published_runs.table(
        store, f"wordnet-{model.name}-{optimizer}", predicted(store, model, sample, optimizer), ""
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
