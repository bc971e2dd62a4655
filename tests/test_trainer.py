"""Watching a real Trainer: what is logged equals what the engine records, and a silent failure is seen."""

import copy
import json
import math
import re
import shutil
import warnings
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import peft
import pytest
import torch
import transformers
from made import Largest
from plain import LOSSES, gap, gap_of
from refused import refused
from tiny import ARCHITECTURES, contexts, leading, model
from toys import a_trainer, only_the_word, still
from transformers import AutoModelForCausalLM, Phi3Config, TrainerCallback, TrainerState, TrainingArguments

from phantomlib.contexts import Context
from phantomlib.critical import step_zero
from phantomlib.critical.step_zero import velocity
from phantomlib.cure import CompetitorLoss
from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ContextError, ParameterError, PhantomError
from phantomlib.models import zoo_models
from phantomlib.models.language_model import add_lora
from phantomlib.trainer import PhantomCallback, SilentFailureWarning, _velocity

STEPS = 6
GPT2 = model("GPT2", "float32")
CONTEXT = contexts(GPT2)[0]


@pytest.fixture
def train(tmp_path):
    """Train on the first of some contexts while all are watched; gives the Trainer and what was measured."""

    def trained(module, rate, optimizer="sgd", *, watched=(CONTEXT,), every=1, callback=None, resume=None, **options):
        one = trainer(module, watched[0], tmp_path, rate, optimizer, **options)
        watch = PhantomCallback(watched, every=every, **(callback or {})).attach(one)
        one.train(resume_from_checkpoint=resume)
        return one, watch.frame()

    return trained


def trainer(module, context, folder, rate, optimizer="sgd", **options):
    return a_trainer(module, [only_the_word(context)] * STEPS, folder, rate, optimizer, **options)


def by_the_engine(plain, rate, **recipe):
    return finetune(plain, [contexts(plain)[0]], [rate], Recipe(steps=STEPS, **recipe)).isel(context=0, rate=0, seed=0)


def unit(plain, context, **recipe):
    """The kinematic number of a budget of 1."""
    first = velocity(plain, [context], Recipe(**recipe))
    return float(first.velocity[0] / first.gap[0].abs())


NAMES = {"rank": "rank_correct", "gap": "logit_gap"}
NAMES |= {name: name for name in ("phi", "signal", "drag", "overlap", "cross_entropy")}


@pytest.mark.parametrize("optimizer, rate", [("sgd", 0.05), ("adam", 1e-3)])
@pytest.mark.parametrize("architecture", ["GPT2", "GPTNeoX", "Gemma2"])
def test_it_measures_what_the_engine_records(architecture, optimizer, rate, train):
    plain = model(architecture, "float32")
    _, seen = train(still(plain.module), rate, optimizer, watched=contexts(plain)[:1], every=2)
    run = by_the_engine(plain, rate, optimizer=optimizer)
    assert seen.step.tolist() == [0, 2, 4, 6]
    for name, recorded in NAMES.items():
        assert seen[name].to_numpy() == pytest.approx(run[recorded].values[::2], rel=2e-4, abs=2e-5), name


@pytest.mark.parametrize("optimizer, rate", [("sgd", 0.05), ("adam", 1e-3)])
@pytest.mark.parametrize("loss, weight", [("margin", 2.0), ("unlikelihood", 5.0), ("gap", 1.0)])
def test_a_trainer_with_a_loss_that_looks_at_the_competitor_follows_the_engine(loss, weight, optimizer, rate, train):
    how = {"loss": loss, "weight": weight}
    one, seen = train(still(GPT2.module), rate, optimizer, callback=how, logging_steps=1)
    run = by_the_engine(GPT2, rate, optimizer=optimizer, **how)
    assert seen.gap.to_numpy() == pytest.approx(run.logit_gap.values, rel=2e-4, abs=2e-5)
    assert seen.cross_entropy.to_numpy() == pytest.approx(run.cross_entropy.values, rel=2e-4, abs=2e-5)
    assert losses(one) == pytest.approx(run.loss.values[:-1], rel=1e-3, abs=1e-4)
    steps = unit(GPT2, CONTEXT, optimizer=optimizer, **how) * rate * seen.step
    assert seen.kinematic_number_alone.tolist() == pytest.approx(steps.tolist(), rel=1e-4)


def losses(one):
    return [row["loss"] for row in one.state.log_history if "loss" in row]


@pytest.mark.parametrize("batch, accumulate", [(1, 1), (4, 1), (2, 2)])
def test_text_without_the_word_is_trained_as_without_the_loss(batch, accumulate, tmp_path):
    plain = model("GPTNeoX", "float32")
    pair = contexts(plain)[0]
    texts = torch.randint(1, 41, (8, 9), generator=torch.Generator().manual_seed(5)).tolist()
    rows = [{"input_ids": ids, "labels": [-100 if i == pair.correct_id else i for i in ids]} for ids in texts]
    ends = []
    for loss in (None, CompetitorLoss([pair], weight=100.0)):
        options = {"batch": batch, "gradient_accumulation_steps": accumulate, "given": {"compute_loss_func": loss}}
        one = a_trainer(still(plain.module), rows, tmp_path, 1e-3, "adam", **options)
        one.train()
        ends.append([p.detach() for p in one.model.parameters()])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_kinematic_number_is_the_budget_in_units_of_the_first_velocity(train):
    _, seen = train(still(GPT2.module), 1e-3, "adam", every=3, lr_scheduler_type="linear")
    spent = [0, 1e-3 * (6 + 5 + 4) / 6, 1e-3 * (6 + 5 + 4 + 3 + 2 + 1) / 6]  # a linear decay over six steps
    expected = [unit(GPT2, CONTEXT, optimizer="adam") * s for s in spent]
    assert seen.kinematic_number_alone.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_first_velocity_is_summed_in_blocks(optimizer, tmp_path, monkeypatch):
    monkeypatch.setattr(step_zero, "BLOCK", 16)
    module, arguments = still(GPT2.module), TrainingArguments(str(tmp_path), max_grad_norm=0.0)
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer](module.parameters(), lr=1.0)
    with Largest(*module.parameters()) as made:
        [found] = _velocity(module, CONTEXT, kind, Recipe(), arguments)
    assert found == pytest.approx(float(velocity(GPT2, [CONTEXT], Recipe(optimizer=optimizer)).velocity[0]), rel=1e-5)
    assert 0 < made.bytes[torch.float64] <= 3 * 32 * 8  # three vectors, blocks of up to twice the size


def groups(module, first, second):
    """The attention and the rest, each with a learning rate of its own."""
    parts = [[p for n, p in module.named_parameters() if ("attn" in n) == where] for where in (True, False)]
    return [{"params": part, "lr": rate} for part, rate in zip(parts, (first, second), strict=True)]


SGD, AdamW = partial(torch.optim.SGD, lr=1e-6), partial(torch.optim.AdamW, weight_decay=0.0)
OPTIMIZERS = {
    "a rate of its own for each group": (lambda m: AdamW(groups(m, 1e-6, 16e-6)), {}),
    "a first group at rest": (lambda m: AdamW(groups(m, 0.0, 1e-6)), {}),
    "weight decay": (lambda m: AdamW(groups(m, 1e-6, 2e-6), weight_decay=300.0), {}),
    "weight decay through the gradient": (lambda m: SGD(m.parameters(), weight_decay=0.5), {}),
    "a clipped gradient": (lambda m: SGD(m.parameters()), {"max_grad_norm": 0.1}),
    "smoothed labels": (lambda m: SGD(m.parameters()), {"label_smoothing_factor": 0.4}),
    "momentum, which later steps gather": (lambda m: SGD(m.parameters(), momentum=0.9), {}),
    "an optimiser derived from a known one": (
        lambda m: type("Own", (torch.optim.SGD,), {})(m.parameters(), lr=1e-6),
        {},
    ),
    "another optimiser": (lambda m: torch.optim.Adagrad(m.parameters(), lr=1e-6), {}),
}


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_the_kinematic_number_is_the_first_step_of_the_trainers_own_optimiser(case, train):
    make, options = OPTIMIZERS[case]
    plain = model("GPT2")  # in double precision, for the difference of two gaps
    context, module = contexts(plain)[0], still(plain.module)

    optimizer, before = make(module), gap_of(module, context)
    _, seen = train(module, 1e-6, watched=[context], max_steps=1, given=with_optimizer(optimizer), **options)
    number = seen.kinematic_number_alone.iloc[-1]
    if "optimiser" in case or "momentum" in case:
        assert math.isnan(number)
    else:
        assert number == pytest.approx((gap_of(module, context) - before) / abs(before), rel=1e-3)


def with_optimizer(optimizer):
    return {"optimizers": (optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0))}


@pytest.mark.parametrize("known", [True, False])
def test_a_run_that_goes_on_from_a_checkpoint_is_one_run(known, tmp_path, train):
    frames, options = [], {"lr_scheduler_type": "linear", "save_strategy": "steps", "save_steps": 3}
    for checkpoint in (None, str(tmp_path / "checkpoint-3")):
        frames.append(train(still(GPT2.module), 0.05, every=2, resume=checkpoint, **options)[1])
        if not known:  # a checkpoint of a run that was not watched
            kept = tmp_path / "checkpoint-3/trainer_state.json"
            state = json.loads(kept.read_text())
            state["stateful_callbacks"].pop("PhantomCallback", None)
            kept.write_text(json.dumps(state))
    if known:
        pd.testing.assert_frame_equal(*frames, rtol=1e-4, check_like=True)
    else:
        assert frames[1].step.tolist() == [3, 4, 6] and frames[1].budget.iloc[0] == 0


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PromptEncoderConfig", "PrefixTuningConfig"])
@pytest.mark.parametrize("loss", ["cross-entropy", "margin"])
def test_virtual_tokens_stand_in_front(kind, loss, train):
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3)
    module = peft.get_peft_model(still(GPT2.module), config)
    with torch.no_grad():
        z = module.eval()(input_ids=torch.tensor([CONTEXT.prompt_ids])).logits[0, -1]
    one, seen = train(module, 1e-9, callback={"loss": loss}, logging_steps=1)
    assert seen.gap.iloc[0] == pytest.approx(gap(z, CONTEXT), abs=1e-5)
    assert seen["rank"].iloc[0] == 1 + int((z > z[CONTEXT.correct_id]).sum())
    expected = float(LOSSES[loss](z, CONTEXT.correct_id, CONTEXT.competitor_id, 1.0))
    assert losses(one)[0] == pytest.approx(expected, rel=1e-3)
    with pytest.raises(ContextError, match="no more than 61"):  # of 64 positions
        PhantomCallback([replace(CONTEXT, prompt_ids=CONTEXT.prompt_ids * 9)]).attach(one)


def test_what_is_measured_does_not_depend_on_the_other_prompts(train):
    """Phi-3's longrope takes other frequencies for all positions of a text beyond its original length."""
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 2, "long_factor": [9.0, 30.0], "rope_theta": 1e4}
    settings = ARCHITECTURES["Phi3"][1] | {"original_max_position_embeddings": 6, "rope_parameters": scaling}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = AutoModelForCausalLM.from_config(Phi3Config(**settings, pad_token_id=0), attn_implementation="eager")
    watched = contexts(GPT2, lengths=(4, 12))
    expected = [gap_of(module.eval(), c) for c in watched]
    _, seen = train(module, 1e-9, watched=watched, every=STEPS)
    assert seen.query("step == 0").gap.tolist() == pytest.approx(expected, abs=1e-5)


def test_lora_is_watched_and_its_geometry_stays(train):
    plain = model("Llama", "float32")
    adapted = add_lora(still(plain.module).requires_grad_(False), rank=2, alpha=8.0, seed=0)
    _, seen = train(adapted, 1e-2, "adam", watched=contexts(plain)[:1])
    run = by_the_engine(plain, 1e-2, method="lora", rank=2, alpha=8.0)
    assert seen.gap.to_numpy() == pytest.approx(run.logit_gap.values, rel=2e-4, abs=2e-5)
    assert seen.overlap.nunique() == 1


def test_lora_on_the_readout_counts_what_the_adapter_adds(train):
    plain = model("Llama", "float32", tied=False)
    context = contexts(plain)[0]
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["lm_head"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(still(plain.module), config)
    _, seen = train(adapted, 5e-2, "adam", watched=[context], every=STEPS)
    e = adapted.merge_and_unload().get_output_embeddings().weight[[context.correct_id, context.competitor_id]]
    assert seen.overlap.iloc[-1] == pytest.approx(float(torch.cosine_similarity(*e.detach(), dim=0)), abs=1e-5)
    assert seen.overlap.nunique() == 2


class Reporter(TrainerCallback):
    """Stands for TensorBoard: it comes before any callback that a user adds."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(dict(logs))


def test_watching_changes_nothing_and_loses_no_log(tmp_path, train):
    alone = trainer(still(GPT2.module), CONTEXT, tmp_path, 1e-3, "adam", seed=3)
    alone.train()
    reporter = Reporter()
    watched, _ = train(still(GPT2.module), 1e-3, "adam", every=2, seed=3, given={"callbacks": [reporter]})
    ends = (one.model.state_dict().values() for one in (alone, watched))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert losses(alone) == losses(watched) and len(losses(alone)) == STEPS // 2
    assert sum("phantom/c0/gap" in row for row in reporter.seen) == 4
    assert all(isinstance(v, int | float) for row in reporter.seen for v in row.values())


class Stop(TrainerCallback):
    """Ends training after a step, as early stopping does."""

    def __init__(self, step, best=None):
        self.step, self.best = step, best

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            state.best_model_checkpoint, control.should_training_stop = self.best, True
        return control


@pytest.mark.parametrize("attached, best", [(True, None), (False, None), (True, "another step's weights")])
def test_the_last_step_is_measured_when_training_stops_early_with_its_weights(attached, best, tmp_path):
    one, watch = trainer(still(GPT2.module), CONTEXT, tmp_path, 1e-3), PhantomCallback([CONTEXT], every=3)
    watch.attach(one) if attached else one.add_callback(watch)
    one.add_callback(Stop(4, best and str(tmp_path)))
    one.args.load_best_model_at_end, one.args.report_to = bool(best), [] if attached else ["tensorboard"]
    with nullcontext() if attached else pytest.warns(UserWarning, match="cannot log to tensorboard by itself.*attach"):
        one.train()
    seen, steps = watch.frame(), [0, 3] if best else [0, 3, 4]
    assert seen.step.tolist() == steps and seen.budget.to_numpy() == pytest.approx([1e-3 * step for step in steps])
    run = by_the_engine(GPT2, 1e-3, optimizer="sgd")
    assert seen.gap.to_numpy() == pytest.approx(run.logit_gap.values[steps], rel=2e-4, abs=2e-5)
    assert [row["step"] for row in one.state.log_history if "phantom/c0/gap" in row] == steps


@pytest.fixture
def warned(train):
    """What is said of a context far behind its competitor, trained with SGD at a kinematic number."""

    def said(number, at_rest=False):
        context = contexts(GPT2, place=20)[0]
        rate = number / unit(GPT2, context, optimizer="sgd") / STEPS
        module, given = still(GPT2.module), {}
        if at_rest:  # a group that trains nothing comes first
            idle = {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.0}
            given = with_optimizer(torch.optim.SGD([idle, {"params": list(module.parameters()), "lr": rate}]))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _, seen = train(module, rate, watched=[context], given=given)
        return [str(w.message) for w in caught if w.category is SilentFailureWarning], seen

    return said


@pytest.mark.parametrize("at_rest", [False, True])
def test_a_silent_failure_is_said_before_the_end_and_at_the_end(at_rest, warned):
    said, seen = warned(0.7, at_rest)
    assert (seen.gap < 0).all() and seen.cross_entropy.iloc[0] - seen.cross_entropy.iloc[-1] > 0.1
    assert len(said) == 2 and "at this pace" in said[0] and f"ended after {STEPS}" in said[1]
    assert "'c0'" in said[0] and "“right0”" in said[0]


@pytest.mark.parametrize("number", [3.0, 1e-4])
def test_no_warning_where_the_correct_word_wins_or_nothing_moves(number, warned):
    said, seen = warned(number)
    assert not said and (seen.gap.iloc[-1] > 0) == (number > 1)


PAIR = Context("x", "she felt deep", "shame", "guilt")
UNKNOWN = [Context("x", "she felt", "zyzzyva", "guilt"), Context("y", "she felt?", "shame", "guilt")]
REFUSED = [  # arguments of the callback, what is raised, what is said
    *(({"every": every}, ParameterError, "every") for every in (0, -1, 2.5, "3", True, None)),
    *(({"contexts": given}, ParameterError, "contexts") for given in ([], ["shame"], [None], PAIR)),
    ({"contexts": [PAIR]}, PhantomError, "tokenizer"),
    ({"contexts": UNKNOWN, "tokenizer": leading()}, ContextError, "2 problems.*zyzzyva.*'\\?'"),
    ({"contexts": [replace(PAIR, prompt="she felt deep " * 40)], "tokenizer": leading(model_max_length=64)},
     ContextError, "'x' has [0-9]+ tokens.*no more than 64"),
    ({"contexts": [replace(CONTEXT, prompt_ids=CONTEXT.prompt_ids * 10)]}, ContextError, "'c0' has 70 .* more than 64"),
    ({"contexts": [replace(CONTEXT, correct_id=41)]}, ContextError, "vocabulary"),
]  # fmt: skip


@pytest.mark.parametrize("given, kind, words", REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_watched_is_refused(given, kind, words, tmp_path):
    with refused(kind, words):
        PhantomCallback(**given).attach(trainer(still(GPT2.module), CONTEXT, tmp_path, 1e-3))


def test_what_cannot_be_watched_is_refused_before_training(tmp_path):
    one = trainer(still(GPT2.module), CONTEXT, tmp_path, 1e-3)
    before = copy.deepcopy(one.model.state_dict())
    one.add_callback(PhantomCallback([PAIR]))  # not attached: told when training starts
    with pytest.raises(PhantomError, match="tokenizer"):
        one.train()
    assert all(torch.equal(a, b) for a, b in zip(one.model.state_dict().values(), before.values(), strict=True))


TINY = {"vocab_size": 41, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}


@pytest.mark.parametrize(
    "name, settings, reason",
    [
        ("GPT2ForSequenceClassification", {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 41}, "has no readout"),
        ("LlamaForTokenClassification", TINY, "has no readout"),
        ("MusicgenForCausalLM", {"vocab_size": 41, "hidden_size": 16, "num_hidden_layers": 1, "num_codebooks": 2}, "has no readout"),
        ("T5ForConditionalGeneration", {"vocab_size": 41, "d_model": 16, "d_ff": 24, "num_layers": 2}, "reads one text"),
        ("BertForMaskedLM", TINY, "lets a token see"),
        ("RobertaForMaskedLM", TINY, "lets a token see"),
    ],
)  # fmt: skip
def test_what_has_no_next_token_is_refused(name, settings, reason, tmp_path):
    kind = getattr(transformers, name)
    one = trainer(kind(kind.config_class(**settings)), CONTEXT, tmp_path, 1e-3)
    with pytest.raises(PhantomError, match=f"'{name}' {reason}.*language model"):
        PhantomCallback([CONTEXT]).attach(one)


OFFSET = TINY | {"is_decoder": True, "max_position_embeddings": 10, "pad_token_id": 1}  # reads 8: positions begin at 2


@pytest.mark.parametrize(
    "name, settings, length",
    [
        ("MptForCausalLM", {"d_model": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": 8, "vocab_size": 41}, 12),
        ("RobertaForCausalLM", OFFSET, 9),
    ],
)
def test_a_prompt_beyond_the_positions_is_told_whatever_the_limit_is_called(name, settings, length, tmp_path):
    kind = getattr(transformers, name)
    one = trainer(kind(kind.config_class(**settings)), CONTEXT, tmp_path, 1e-3)
    with refused(ContextError, f"{name} cannot read the prompt of context 'c0', {length} tokens"):
        PhantomCallback([CONTEXT, replace(CONTEXT, prompt_ids=tuple(range(2, 2 + length)))]).attach(one)


def test_what_would_be_lost_is_refused(tmp_path, train):
    with pytest.raises(PhantomError, match="reads its own state"):
        train(still(GPT2.module), 1e-3, restore_callback_states_from_checkpoint=True)
    with pytest.raises(PhantomError, match="compute_loss_func already"):
        train(GPT2.module, 1e-3, callback={"loss": "margin"}, given={"compute_loss_func": lambda *given, **more: None})
    unattached = trainer(still(GPT2.module), CONTEXT, tmp_path, 1e-3)
    unattached.add_callback(PhantomCallback([CONTEXT], loss="margin"))
    with pytest.raises(PhantomError, match="attach"):
        unattached.train()


def test_the_budget_is_summed_up_once():
    asked, watch, optimizer = [], PhantomCallback(), torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: asked.append(step) or 1 - step / 500)
    asked.clear()
    watch.planned, watch.spent = None, np.array([0.5])
    for step in (0, 100, 499):
        budget = watch._budget(schedule, TrainerState(global_step=step, max_steps=500))
        assert budget == pytest.approx(0.5 + 501)  # twice the sum of 1/T to T/T
    assert asked == list(range(500))


def test_a_schedule_that_is_no_function_of_the_step_goes_by_its_last_rate():
    optimizer, watch = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5), PhantomCallback()
    watch.spent = np.array([1.5])
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    assert watch._budget(schedule, TrainerState(global_step=3, max_steps=9)) == 1.5 + 6 * 0.5


def test_the_script_of_the_page_runs(tmp_path, monkeypatch):
    [page] = (Path(__file__).parents[1] / "notebooks").glob("*_watch_training.py")
    script = page.read_text(encoding="utf-8").partition("# ```python\n")[2].partition("# ```\n")[0]
    shutil.copytree(zoo_models.path("gpt2-s"), tmp_path / "my-model")
    prompt = "When the news came, Anna was very"
    (tmp_path / "my_texts.txt").write_text(f"{prompt} glad\n{prompt} ill")
    (tmp_path / "my_contexts.yaml").write_text(f"- {{id: glad, prompt: '{prompt}', correct: glad, competitor: happy}}")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(re.sub("^# ?", "", script, flags=re.MULTILINE), names)
    assert names["watch"].frame().step.tolist() == [0, 6] and names["watch"].frame().gap.iloc[-1] < 0
