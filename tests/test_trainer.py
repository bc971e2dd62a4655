"""Watching a real Trainer: what is logged equals what the engine records, and a silent failure is seen."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from made import Largest
from tiny import contexts, leading, model
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from phantomlib.contexts import Context
from phantomlib.critical import step_zero
from phantomlib.critical.step_zero import velocity
from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ContextError, ParameterError, PhantomError
from phantomlib.models.language_model import add_lora
from phantomlib.trainer import PhantomCallback, SilentFailureWarning, _velocity

STEPS = 6


class Sentences(torch.utils.data.Dataset):
    """The prompt and its correct token; only the latter is to be predicted."""

    def __init__(self, context, repeats=STEPS):
        self.context, self.repeats = context, repeats

    def __len__(self):
        return self.repeats

    def __getitem__(self, index):
        ids = [*self.context.prompt_ids, self.context.correct_id]
        return {"input_ids": ids, "labels": [-100] * (len(ids) - 1) + ids[-1:], "attention_mask": [1] * len(ids)}


def still(module):
    """A copy that trains without dropout, like the engine."""
    module = copy.deepcopy(module).requires_grad_(True)
    for layer in module.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    return module


def trainer(module, context, folder, rate, optimizer="sgd", **options):
    options = {"lr_scheduler_type": "constant", "logging_steps": 2} | options
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=1, num_train_epochs=1, learning_rate=rate, report_to=[],
        optim={"sgd": "sgd", "adam": "adamw_torch"}[optimizer], max_grad_norm=0.0, save_strategy="no",
        disable_tqdm=True, use_cpu=True, **options,
    )  # fmt: skip
    return Trainer(module, arguments, train_dataset=Sentences(context))


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
    assert watch.frame().kinematic_number.tolist() == pytest.approx([unit * s for s in spent], rel=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_first_velocity_is_summed_in_blocks(optimizer, monkeypatch):
    monkeypatch.setattr(step_zero, "BLOCK", 16)
    plain, recipe = model("GPT2", "float32"), Recipe(optimizer=optimizer)
    context, module = contexts(plain)[0], still(plain.module)
    with Largest(*module.parameters()) as made:
        found = _velocity(module, context, recipe)
    assert found == pytest.approx(float(velocity(plain, [context], recipe).velocity[0]), rel=1e-5)
    assert 0 < made.bytes[torch.float64] <= 2 * 32 * 8  # two vectors, blocks of up to twice the size


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


def test_without_attach_the_history_still_has_them(tmp_path):
    plain = model("GPT2", "float32")
    context = contexts(plain)[0]
    one = trainer(still(plain.module), context, tmp_path, 1e-3)
    one.add_callback(PhantomCallback([context], every=2))
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


def warnings_of(number, folder):
    """What is said of a context far behind its competitor, trained with SGD at a kinematic number."""
    plain = model("GPT2", "float32")
    context = contexts(plain, place=20)[0]
    first = velocity(plain, [context], Recipe(optimizer="sgd"))
    rate = number * float(first.gap[0].abs() / first.velocity[0]) / STEPS
    one = trainer(still(plain.module), context, folder, rate)
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
