"""Watching a real Trainer: what is logged equals what the engine records, and a silent failure is seen."""

import copy
import json
import math
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pandas as pd
import peft
import pytest
import torch
import transformers
from made import Largest
from tiny import ARCHITECTURES, contexts, leading, model
from toys import a_trainer, only_the_word, still
from transformers import AutoModelForCausalLM, Phi3Config, TrainerCallback, TrainerState, TrainingArguments

from phantomlib.contexts import Context
from phantomlib.critical import step_zero
from phantomlib.critical.step_zero import velocity
from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ContextError, ParameterError, PhantomError
from phantomlib.models import zoo_models
from phantomlib.models.language_model import add_lora
from phantomlib.trainer import PhantomCallback, SilentFailureWarning, _velocity

STEPS = 6


def trainer(module, context, folder, rate, optimizer="sgd", **options):
    return a_trainer(module, [only_the_word(context)] * STEPS, folder, rate, optimizer, **options)


NAMES = {
    "phi": "phi", "signal": "signal", "drag": "drag", "rank": "rank_correct", "gap": "logit_gap", "overlap": "overlap",
    "cross_entropy": "cross_entropy",
}  # fmt: skip


@pytest.mark.parametrize("optimizer, rate", [("sgd", 0.05), ("adam", 1e-3)])
@pytest.mark.parametrize("architecture", ["GPT2", "GPTNeoX", "Gemma2"])
def test_it_measures_what_the_engine_records(architecture, optimizer, rate, tmp_path):
    plain = model(architecture, "float32")
    context = contexts(plain)[0]
    one = trainer(still(plain.module), context, tmp_path, rate, optimizer)
    watch = PhantomCallback([context], every=2).attach(one)
    one.train()
    run = finetune(plain, [context], [rate], Recipe(optimizer=optimizer, steps=STEPS)).isel(context=0, rate=0, seed=0)
    seen = watch.frame()
    assert seen.step.tolist() == [0, 2, 4, 6]
    for name, recorded in NAMES.items():
        assert seen[name].to_numpy() == pytest.approx(run[recorded].values[::2], rel=2e-4, abs=2e-5), name


def test_the_kinematic_number_is_the_budget_in_units_of_the_first_velocity(tmp_path):
    plain = model("GPT2", "float32")
    context = contexts(plain)[0]
    one = trainer(still(plain.module), context, tmp_path, 1e-3, "adam", lr_scheduler_type="linear")
    watch = PhantomCallback([context], every=3).attach(one)
    one.train()
    first = velocity(plain, [context], Recipe(optimizer="adam"))
    unit = float(first.velocity[0] / first.gap[0].abs())
    spent = [0, 1e-3 * (6 + 5 + 4) / 6, 1e-3 * (6 + 5 + 4 + 3 + 2 + 1) / 6]  # a linear decay over six steps
    assert watch.frame().kinematic_number_alone.tolist() == pytest.approx([unit * s for s in spent], rel=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_first_velocity_is_summed_in_blocks(optimizer, tmp_path, monkeypatch):
    monkeypatch.setattr(step_zero, "BLOCK", 16)
    plain = model("GPT2", "float32")
    context, module = contexts(plain)[0], still(plain.module)
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer](module.parameters(), lr=1.0)
    with Largest(*module.parameters()) as made:
        [found] = _velocity(module, context, kind, Recipe(), TrainingArguments(str(tmp_path), max_grad_norm=0.0))
    recipe = Recipe(optimizer=optimizer)
    assert found == pytest.approx(float(velocity(plain, [context], recipe).velocity[0]), rel=1e-5)
    assert 0 < made.bytes[torch.float64] <= 3 * 32 * 8  # three vectors, blocks of up to twice the size


def adamw(scale, **options):
    """AdamW on two groups: the attention and the rest, whose rate is ``scale`` times as large."""

    def of(module):
        names = dict(module.named_parameters())
        parts = [[p for n, p in names.items() if ("attn" in n) == where] for where in (True, False)]
        groups = [
            {"params": p, "lr": rate}
            for p, rate in zip(parts, (1e-6 if scale else 0.0, 1e-6 * (scale or 1)), strict=True)
        ]
        return torch.optim.AdamW(groups, **options)

    return of


OPTIMIZERS = {
    "a rate of its own for each group": (adamw(16.0, weight_decay=0.0), {}),
    "a first group at rest": (adamw(0.0, weight_decay=0.0), {}),
    "weight decay": (adamw(2.0, weight_decay=300.0), {}),
    "weight decay through the gradient": (lambda m: torch.optim.SGD(m.parameters(), lr=1e-6, weight_decay=0.5), {}),
    "a clipped gradient": (lambda m: torch.optim.SGD(m.parameters(), lr=1e-6), {"max_grad_norm": 0.1}),
    "smoothed labels": (lambda m: torch.optim.SGD(m.parameters(), lr=1e-6), {"label_smoothing_factor": 0.4}),
    "momentum, which later steps gather": (lambda m: torch.optim.SGD(m.parameters(), lr=1e-6, momentum=0.9), {}),
    "another optimiser": (lambda m: torch.optim.Adagrad(m.parameters(), lr=1e-6), {}),
}


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_the_kinematic_number_is_the_first_step_of_the_trainers_own_optimiser(case, tmp_path):
    plain, (make, options) = model("GPT2"), OPTIMIZERS[case]
    context, module = contexts(plain)[0], still(plain.module)

    def gap():
        z = module(torch.tensor([context.prompt_ids])).logits[0, -1].detach()
        return float(z[context.correct_id] - z[context.competitor_id])

    optimizer, before = make(module), gap()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    one = trainer(module, context, tmp_path, 1e-6, max_steps=1, given={"optimizers": (optimizer, schedule)}, **options)
    watch = PhantomCallback([context], every=1).attach(one)
    one.train()
    number = watch.frame().kinematic_number_alone.iloc[-1]
    if "optimiser" in case or "momentum" in case:
        assert math.isnan(number)
    else:
        assert number == pytest.approx((gap() - before) / abs(before), rel=1e-3)


def test_a_first_group_at_rest_does_not_silence_the_warning(tmp_path):
    said, _ = warnings_of(0.7, tmp_path, at_rest=True)
    assert len(said) == 2 and "at this pace" in said[0]


@pytest.mark.parametrize("known", [True, False])
def test_a_run_that_goes_on_from_a_checkpoint_is_one_run(known, tmp_path):
    plain = model("GPT2", "float32")
    context, frames = contexts(plain)[0], []
    for checkpoint in (None, tmp_path / "checkpoint-3"):
        options = {"lr_scheduler_type": "linear", "save_strategy": "steps", "save_steps": 3}
        one = trainer(still(plain.module), context, tmp_path, 0.05, **options)
        watch = PhantomCallback([context], every=2).attach(one)
        one.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        frames.append(watch.frame())
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
def test_virtual_tokens_stand_in_front(kind, loss, tmp_path):
    plain = model("GPT2", "float32")
    context = contexts(plain)[0]
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3)
    module = peft.get_peft_model(still(plain.module), config)
    with torch.no_grad():
        z = module.eval()(input_ids=torch.tensor([context.prompt_ids])).logits[0, -1]
    one = trainer(module, context, tmp_path, 1e-9, logging_steps=1)
    watch = PhantomCallback([context], every=1, loss=loss).attach(one)
    one.train()
    gap = float(z[context.correct_id] - z[context.competitor_id])
    assert watch.frame().gap.iloc[0] == pytest.approx(gap, abs=1e-5)
    assert watch.frame()["rank"].iloc[0] == 1 + int((z > z[context.correct_id]).sum())
    expected = float(z.logsumexp(0) - z[context.correct_id]) + (math.log1p(math.exp(-gap)) if loss == "margin" else 0)
    assert [row["loss"] for row in one.state.log_history if "loss" in row][0] == pytest.approx(expected, rel=1e-3)
    long = replace(context, prompt_ids=context.prompt_ids * 9)  # 63 of 64 positions
    with pytest.raises(ContextError, match="no more than 61"):
        PhantomCallback([long]).attach(one)


def test_what_is_measured_does_not_depend_on_the_other_prompts(tmp_path):
    """Phi-3's longrope takes other frequencies for all positions of a text beyond its original length."""
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 2, "long_factor": [9.0, 30.0], "rope_theta": 1e4}
    settings = ARCHITECTURES["Phi3"][1] | {"original_max_position_embeddings": 6, "rope_parameters": scaling}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Phi3Config(**settings, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        module = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    watched = contexts(model("GPT2", "float32"), lengths=(4, 12))
    one = trainer(module, watched[0], tmp_path, 1e-9)
    watch = PhantomCallback(watched, every=STEPS).attach(one)
    with torch.no_grad():
        logits = [module.eval()(torch.tensor([c.prompt_ids])).logits[0, -1] for c in watched]
    one.train()
    expected = [float(z[c.correct_id] - z[c.competitor_id]) for z, c in zip(logits, watched, strict=True)]
    assert watch.frame().query("step == 0").gap.tolist() == pytest.approx(expected, abs=1e-5)


def test_lora_is_watched_and_its_geometry_stays(tmp_path):
    plain = model("Llama", "float32")
    context = contexts(plain)[0]
    recipe = Recipe(method="lora", rank=2, alpha=8.0, steps=STEPS)
    adapted = add_lora(still(plain.module).requires_grad_(False), rank=2, alpha=8.0, seed=0)
    one = trainer(adapted, context, tmp_path, 1e-2, "adam")
    watch = PhantomCallback([context], every=1).attach(one)
    one.train()
    run = finetune(plain, [context], [1e-2], recipe).isel(context=0, rate=0, seed=0)
    assert watch.frame().gap.to_numpy() == pytest.approx(run.logit_gap.values, rel=2e-4, abs=2e-5)
    assert watch.frame().overlap.nunique() == 1


def test_lora_on_the_readout_counts_what_the_adapter_adds(tmp_path):
    from peft import LoraConfig, get_peft_model

    plain = model("Llama", "float32", tied=False)
    context = contexts(plain)[0]
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["lm_head"], task_type="CAUSAL_LM")
    adapted = get_peft_model(still(plain.module), config)
    one = trainer(adapted, context, tmp_path, 5e-2, "adam")
    watch = PhantomCallback([context], every=STEPS).attach(one)
    one.train()
    E = adapted.merge_and_unload().get_output_embeddings().weight.detach()
    e = E[[context.correct_id, context.competitor_id]]
    assert watch.frame().overlap.iloc[-1] == pytest.approx(float(torch.cosine_similarity(*e, dim=0)), abs=1e-5)
    assert watch.frame().overlap.nunique() == 2


def test_watching_changes_nothing_and_loses_no_log(tmp_path):
    plain = model("GPT2", "float32")
    context = contexts(plain)[0]
    ends, logs = [], []
    for watched in (False, True):
        one = trainer(still(plain.module), context, tmp_path, 1e-3, "adam", seed=3)
        if watched:
            PhantomCallback([context], every=1).attach(one)
        one.train()
        ends.append(one.model.state_dict())
        logs.append([row["loss"] for row in one.state.log_history if "loss" in row])
    assert all(torch.equal(a, b) for a, b in zip(*(end.values() for end in ends), strict=True))
    assert logs[0] == logs[1] and len(logs[0]) == STEPS // 2


class Reporter(TrainerCallback):
    """Stands for TensorBoard: it comes before any callback that a user adds."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(dict(logs))


def test_reporters_get_the_values(tmp_path):
    plain = model("GPT2", "float32")
    context = contexts(plain)[0]
    one, reporter = trainer(still(plain.module), context, tmp_path, 1e-3), Reporter()
    one.add_callback(reporter)
    PhantomCallback([context], every=2).attach(one)
    one.train()
    assert sum(f"phantom/{context.id}/gap" in row for row in reporter.seen) == 4
    assert all(isinstance(v, int | float) for row in reporter.seen for v in row.values())


def test_without_attach_the_history_still_has_them_and_a_reporter_is_told_of(tmp_path):
    plain = model("GPT2", "float32")
    context = contexts(plain)[0]
    one = trainer(still(plain.module), context, tmp_path, 1e-3)
    one.add_callback(PhantomCallback([context], every=2))
    one.args.report_to = ["tensorboard"]
    with pytest.warns(UserWarning, match="cannot log to tensorboard by itself.*attach"):
        one.train()
    assert sum(f"phantom/{context.id}/gap" in row for row in one.state.log_history) == 4


class Stop(TrainerCallback):
    """Ends training after a step, as early stopping does."""

    def __init__(self, step, best=None):
        self.step, self.best = step, best

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            state.best_model_checkpoint, control.should_training_stop = self.best, True
        return control


@pytest.mark.parametrize("attached", [True, False])
def test_the_last_step_is_measured_when_training_stops_early(attached, tmp_path):
    plain = model("GPT2", "float32")
    context = contexts(plain)[0]
    one = trainer(still(plain.module), context, tmp_path, 1e-3)
    watch = PhantomCallback([context], every=3)
    watch.attach(one) if attached else one.add_callback(watch)
    one.add_callback(Stop(4))
    one.train()
    run = finetune(plain, [context], [1e-3], Recipe(optimizer="sgd", steps=STEPS)).isel(context=0, rate=0, seed=0)
    assert watch.frame().step.tolist() == [0, 3, 4]
    assert watch.frame().gap.to_numpy() == pytest.approx(run.logit_gap.values[[0, 3, 4]], rel=2e-4, abs=2e-5)
    assert watch.frame().budget.to_numpy() == pytest.approx([0, 3e-3, 4e-3])
    rows = [row for row in one.state.log_history if f"phantom/{context.id}/gap" in row]
    assert [row["step"] for row in rows] == [0, 3, 4]


def test_weights_of_the_best_checkpoint_are_not_taken_for_those_of_the_last_step(tmp_path):
    plain = model("GPT2", "float32")
    context = contexts(plain)[0]
    one = trainer(still(plain.module), context, tmp_path, 1e-3)
    one.args.load_best_model_at_end = True
    watch = PhantomCallback([context], every=3).attach(one)
    one.add_callback(Stop(4, best=str(tmp_path)))
    one.train()
    assert watch.frame().step.tolist() == [0, 3]


def warnings_of(number, folder, at_rest=False):
    """What is said of a context far behind its competitor, trained with SGD at a kinematic number."""
    plain = model("GPT2", "float32")
    context = contexts(plain, place=20)[0]
    first = velocity(plain, [context], Recipe(optimizer="sgd"))
    rate = number * float(first.gap[0].abs() / first.velocity[0]) / STEPS
    module, given = still(plain.module), {}
    if at_rest:  # a group that trains nothing comes first
        idle = {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.0}
        optimizer = torch.optim.SGD([idle, {"params": list(module.parameters()), "lr": rate}])
        given = {"optimizers": (optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0))}
    one = trainer(module, context, folder, rate, given=given)
    watch = PhantomCallback([context], every=1).attach(one)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        one.train()
    return [str(w.message) for w in caught if w.category is SilentFailureWarning], watch.frame()


def test_a_silent_failure_is_said_before_the_end_and_at_the_end(tmp_path):
    said, seen = warnings_of(0.7, tmp_path)
    assert (seen.gap < 0).all() and seen.cross_entropy.iloc[0] - seen.cross_entropy.iloc[-1] > 0.1
    assert len(said) == 2 and "at this pace" in said[0] and f"ended after {STEPS}" in said[1]
    assert "'c0'" in said[0] and "“right0”" in said[0]


@pytest.mark.parametrize("number", [3.0, 1e-4])
def test_no_warning_where_the_correct_word_wins_or_nothing_moves(number, tmp_path):
    said, seen = warnings_of(number, tmp_path)
    assert not said and (seen.gap.iloc[-1] > 0) == (number > 1)


@pytest.mark.parametrize("every", [0, -1, 2.5, "3", True, None])
def test_bad_intervals(every):
    with pytest.raises(ParameterError, match="every"):
        PhantomCallback(every=every)


@pytest.mark.parametrize("given", [[], ["shame"], [None]])
def test_bad_contexts(given):
    with pytest.raises(ParameterError, match="contexts"):
        PhantomCallback(given)


def test_what_cannot_be_watched_is_refused_before_training(tmp_path):
    plain = model("GPT2", "float32")
    one = trainer(still(plain.module), contexts(plain)[0], tmp_path, 1e-3)
    before = copy.deepcopy(one.model.state_dict())
    pair = Context("x", "she felt deep", "shame", "guilt")
    with pytest.raises(PhantomError, match="tokenizer"):
        PhantomCallback([pair]).attach(one)
    unknown = [Context("x", "she felt", "zyzzyva", "guilt"), Context("y", "she felt?", "shame", "guilt")]
    with pytest.raises(ContextError, match="2 problems.*zyzzyva.*'\\?'"):
        PhantomCallback(unknown, tokenizer=leading())
    one.add_callback(PhantomCallback([pair]))  # not attached: told when training starts
    with pytest.raises(PhantomError, match="tokenizer"):
        one.train()
    assert all(torch.equal(a, b) for a, b in zip(one.model.state_dict().values(), before.values(), strict=True))


def test_a_prompt_that_is_too_long_is_refused_at_construction(tmp_path):
    plain = model("GPT2", "float32")
    context = contexts(plain)[0]
    tokenizer = leading()
    tokenizer.model_max_length = 64
    long = Context("long", "she felt deep " * 40, "shame", "guilt")
    with pytest.raises(ContextError, match="'long' has [0-9]+ tokens.*no more than 64"):
        PhantomCallback([long], tokenizer=tokenizer)
    one = trainer(still(plain.module), context, tmp_path, 1e-3)
    with pytest.raises(ContextError, match="'c0' has 70 tokens.*no more than 64"):
        PhantomCallback([replace(context, prompt_ids=context.prompt_ids * 10)]).attach(one)
    with pytest.raises(ContextError, match="vocabulary"):
        PhantomCallback([replace(context, correct_id=41)]).attach(one)


TINY = {"vocab_size": 41, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}


@pytest.mark.parametrize(
    "name, settings, reason",
    [
        ("GPT2ForSequenceClassification", {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 41}, "has no readout"),
        ("LlamaForTokenClassification", TINY, "has no readout"),
        ("T5ForConditionalGeneration", {"vocab_size": 41, "d_model": 16, "d_ff": 24, "num_layers": 2}, "reads one text"),
        ("BertForMaskedLM", TINY, "lets a token see"),
        ("RobertaForMaskedLM", TINY, "lets a token see"),
    ],
)  # fmt: skip
def test_what_has_no_next_token_is_refused(name, settings, reason, tmp_path):
    kind = getattr(transformers, name)
    module, context = kind(kind.config_class(**settings)), contexts(model("GPT2", "float32"))[0]
    with pytest.raises(PhantomError, match=f"{name} {reason}.*causal language model"):
        PhantomCallback([context]).attach(trainer(module, context, tmp_path, 1e-3))


def test_a_trainer_that_would_restore_the_callback_itself_is_refused(tmp_path):
    context = contexts(model("GPT2", "float32"))[0]
    module = still(model("GPT2", "float32").module)
    one = trainer(module, context, tmp_path, 1e-3, restore_callback_states_from_checkpoint=True)
    PhantomCallback([context]).attach(one)
    with pytest.raises(PhantomError, match="reads its own state"):
        one.train()


class Counted:
    """A schedule of transformers, linear from 1 to 0, that counts how often it is asked."""

    def __init__(self, steps):
        self.steps, self.asked = steps, 0
        self.base_lrs, self.lr_lambdas = [2.0], [self.share]

    def share(self, step):
        self.asked += 1
        return 1 - step / self.steps


def test_the_budget_left_is_summed_up_once():
    steps, watch = 500, PhantomCallback()
    watch.ahead, schedule = None, Counted(steps)
    for step in range(steps + 1):
        state = TrainerState(global_step=step, max_steps=steps)
        left = watch._still_to_come(schedule, state)
        assert left == pytest.approx((steps - step) * (steps - step + 1) / steps)  # twice the sum of 1/T to (T - t)/T
    assert schedule.asked == steps


def test_a_schedule_that_is_no_function_of_the_step_goes_by_its_last_rate():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    assert PhantomCallback()._still_to_come(schedule, TrainerState(global_step=3, max_steps=9)) == 6 * 0.5


def test_the_script_of_the_page_runs(tmp_path, monkeypatch):
    [page] = (Path(__file__).parents[1] / "notebooks").glob("*_watch_training.py")
    script = page.read_text(encoding="utf-8").partition("# ```python\n")[2].partition("# ```\n")[0]
    shutil.copytree(zoo_models.path("gpt2-s"), tmp_path / "my-model")
    (tmp_path / "my_texts.txt").write_text(
        "When the news came, Anna was very glad\nAfter the lie, Anna felt a deep sense of shame"
    )
    pair = "{id: glad, prompt: 'When the news came, Anna was very', correct: glad, competitor: happy}"
    (tmp_path / "my_contexts.yaml").write_text(f"- {pair}")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(re.sub("^# ?", "", script, flags=re.MULTILINE), names)
    assert names["watch"].frame().step.tolist() == [0, 6] and names["watch"].frame().gap.iloc[-1] < 0
