"""A real Trainer with a loss that looks at the competitor: it trains what the engine trains, and nothing else changes."""

import textwrap

import pytest
import torch
from tiny import contexts, leading, model
from toys import a_trainer, only_the_word, still

from phantomlib import cure
from phantomlib.contexts import Context
from phantomlib.critical.step_zero import velocity
from phantomlib.cure import CompetitorLoss
from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ContextError, ParameterError, PhantomError
from phantomlib.trainer import PhantomCallback

STEPS = 6


@pytest.mark.parametrize("optimizer, rate", [("sgd", 0.05), ("adam", 1e-3)])
@pytest.mark.parametrize("loss, weight", [("margin", 2.0), ("unlikelihood", 5.0), ("gap", 1.0)])
def test_the_trainer_follows_the_engine(loss, weight, optimizer, rate, tmp_path):
    plain = model("GPT2", "float32")
    context = contexts(plain)[0]
    one = a_trainer(still(plain.module), [only_the_word(context)] * STEPS, tmp_path, rate, optimizer, logging_steps=1)
    watch = PhantomCallback([context], every=1, loss=loss, weight=weight).attach(one)
    one.train()
    recipe = Recipe(optimizer=optimizer, steps=STEPS, loss=loss, weight=weight)
    run = finetune(plain, [context], [rate], recipe).isel(context=0, rate=0, seed=0)
    seen = watch.frame()
    assert seen.gap.to_numpy() == pytest.approx(run.logit_gap.values, rel=2e-4, abs=2e-5)
    assert seen.cross_entropy.to_numpy() == pytest.approx(run.cross_entropy.values, rel=2e-4, abs=2e-5)
    logged = [row["loss"] for row in one.state.log_history if "loss" in row]
    assert logged == pytest.approx(run.loss.values[:-1], rel=1e-3, abs=1e-4)
    first = velocity(plain, [context], recipe)
    unit = float(first.velocity[0] / first.gap[0].abs())
    assert seen.kinematic_number_alone.tolist() == pytest.approx([unit * rate * t for t in range(STEPS + 1)], rel=1e-4)


def full_text(plain, n=8, length=9):
    ids = torch.randint(1, 41, (n, length), generator=torch.Generator().manual_seed(5)).tolist()
    return [{"input_ids": row, "labels": row} for row in ids]


@pytest.mark.parametrize("batch, accumulate", [(1, 1), (4, 1), (2, 2)])
def test_text_without_the_word_is_trained_as_before(batch, accumulate, tmp_path):
    plain = model("GPTNeoX", "float32")
    pair = contexts(plain)[0]
    rows = [row | {"labels": [-100 if i == pair.correct_id else i for i in row["labels"]]} for row in full_text(plain)]
    ends = []
    for loss in (None, CompetitorLoss([pair], weight=100.0)):
        options = {"batch": batch, "gradient_accumulation_steps": accumulate, "given": {"compute_loss_func": loss}}
        one = a_trainer(still(plain.module), rows, tmp_path, 1e-3, "adam", **options)
        one.train()
        ends.append([p.detach() for p in one.model.parameters()])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_term_counts_wherever_the_word_comes_next():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(3, 5, 41, dtype=torch.float32, generator=generator)
    labels = torch.tensor([[7, 3, 3, 9, -100], [3, 2, 1, 0, 3], [5, 5, 9, 5, 5]])
    plain = model("GPT2", "float32")
    first = contexts(plain)[0].__class__(Context("a", "p", "x", "y"), (1,), 3, 8)
    second = first.__class__(Context("b", "p", "x", "y"), (2,), 9, 1)
    again = first.__class__(Context("c", "q", "x", "y"), (4,), 3, 8)  # the same words after another prompt
    found = CompetitorLoss([first, second, again], loss="margin", weight=0.5)({"logits": logits}, labels)
    expected, count = 0.0, 0
    for row, targets in zip(logits.double(), labels, strict=True):
        for z, label in zip(row[:-1], targets[1:].tolist(), strict=True):
            if label == -100:
                continue
            count += 1
            expected -= float(z.log_softmax(0)[label])
            competitor = {3: 8, 9: 1}.get(label)
            if competitor is not None:
                expected += 0.5 * float(torch.log(1 + torch.exp(z[competitor] - z[label])))
    assert float(found) == pytest.approx(expected / count, rel=1e-5)
    counted = CompetitorLoss([first, second], loss="margin", weight=0.5)({"logits": logits}, labels, torch.tensor(40))
    assert float(counted) == pytest.approx(expected / 40, rel=1e-5)


def test_words_are_found_with_the_tokenizer():
    tokenizer = leading()
    pair = Context("x", "she felt deep", "shame", "guilt")
    correct, competitor = (tokenizer(f" {word}")["input_ids"][0] for word in ("shame", "guilt"))
    assert CompetitorLoss([pair], tokenizer).competitors == {correct: [competitor]}
    with pytest.raises(ContextError):
        CompetitorLoss([Context("x", "she felt deep", "zyzzyva", "guilt")], tokenizer)


def test_the_example_of_the_module_works(tmp_path, monkeypatch):
    example = textwrap.dedent(cure.__doc__.split("::\n")[1].split("\nOr let")[0])
    pair = "- {id: x, prompt: she felt deep, correct: shame, competitor: guilt}\n"
    (tmp_path / "my_contexts.yaml").write_text(pair)
    monkeypatch.chdir(tmp_path)
    names = {"tokenizer": leading(), "Trainer": lambda *given, **options: options}
    exec(example, names)
    assert len(names["trainer"]["compute_loss_func"].competitors) == 1


@pytest.mark.parametrize("given", [{"loss": "cross-entropy"}, {"loss": "hinge"}, {"weight": 0.0}, {"weight": -1.0}])
def test_what_makes_no_term_is_refused(given):
    with pytest.raises(ParameterError):
        CompetitorLoss(contexts(model()), **given)


def test_no_context_is_refused():
    with pytest.raises(ParameterError, match="at least one"):
        CompetitorLoss([])


def test_a_loss_that_would_be_lost_is_refused(tmp_path):
    plain = model("GPT2", "float32")
    context = contexts(plain)[0]
    rows, given = [only_the_word(context)], {"compute_loss_func": lambda *given, **more: None}
    own = a_trainer(still(plain.module), rows, tmp_path, 1e-3, given=given)
    with pytest.raises(PhantomError, match="compute_loss_func already"):
        PhantomCallback([context], loss="margin").attach(own)
    unattached = a_trainer(still(plain.module), rows, tmp_path, 1e-3)
    unattached.add_callback(PhantomCallback([context], loss="margin"))
    with pytest.raises(PhantomError, match="attach"):
        unattached.train()


@pytest.mark.parametrize("loss", ["margin", "unlikelihood", "gap"])
def test_no_step_waits_for_the_device(loss):
    """On the device meta everything that would need a number on the host raises."""
    made = CompetitorLoss(contexts(model("GPT2", "float32")), loss=loss)
    logits, labels = torch.empty(2, 5, 41, device="meta"), torch.empty(2, 5, dtype=torch.long, device="meta")
    assert made({"logits": logits}, labels).shape == made({"logits": logits}, labels, 7).shape == ()
