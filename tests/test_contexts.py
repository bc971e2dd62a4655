"""Contexts: files that are read or refused, words that become single tokens whatever a tokenizer does with spaces."""

import time
from pathlib import Path

import pytest
import tiny
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import phantomlib
from phantomlib.contexts import Context, check_spelling, load_contexts, resolve
from phantomlib.errors import ContextError
from phantomlib.models import zoo_models

SHAME = Context("shame", "she felt deep", "shame", "guilt")


def write(folder, text):
    path = folder / "contexts.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_the_book_has_ten_contexts():
    contexts = load_contexts()
    assert len(contexts) == 10 == len({c.id for c in contexts})
    assert all(
        c.kind == "near-synonym" and c.prompt == c.prompt.strip() and c.correct != c.competitor for c in contexts
    )


def test_a_file_is_read_as_written(tmp_path):
    entries = [
        {"id": "one", "prompt": "Élan vital is", "correct": "naïve", "competitor": "simple"},
        {"id": "two", "prompt": "x", "correct": "a", "competitor": "A", "kind": "control"},
    ]
    path = write(tmp_path, yaml.safe_dump(entries, allow_unicode=True))
    assert load_contexts(path) == load_contexts(str(path)) == [Context(**entry) for entry in entries]


GOOD = "{id: a, prompt: she felt, correct: shame, competitor: guilt}"


@pytest.mark.parametrize("source", ["", ".", "no/such.yaml", "x" * 5000, "a\0b", None, 7], ids=repr)
def test_a_source_that_is_no_file_is_refused(source):
    with pytest.raises(ContextError, match="No contexts file"):
        load_contexts(source)


@pytest.mark.parametrize("habit", tiny.TOKENIZERS)
@pytest.mark.parametrize("spaces", ["", " "])
def test_prompt_and_word_are_the_tokens_of_the_joined_text(habit, spaces):
    tokenizer = tiny.TOKENIZERS[habit]()
    context = Context("a", SHAME.prompt + spaces, spaces + "shame", "guilt" + spaces)
    found = resolve(context, tokenizer)
    for piece, word in ((found.correct_id, "shame"), (found.competitor_id, "guilt")):
        assert tokenizer.decode([*found.prompt_ids, piece], skip_special_tokens=True).strip() == f"she felt deep {word}"
        assert tokenizer.decode([piece]).strip() == word
    assert (found.id, found.context) == ("a", context)


def test_bos_is_part_of_the_prompt_once():
    plain, with_bos = resolve(SHAME, tiny.leading()), resolve(SHAME, tiny.leading(bos=True))
    assert with_bos.prompt_ids == (0, *plain.prompt_ids) and with_bos.correct_id == plain.correct_id


def test_a_piece_that_holds_its_space_is_found_behind_a_prompt_that_ends_with_one():
    tokenizer = tiny.trailing()
    found = resolve(SHAME, tokenizer)
    pieces = tokenizer.convert_ids_to_tokens([*found.prompt_ids, found.correct_id, found.competitor_id])
    assert pieces == ["she ", "felt ", "deep ", "shame ", "guilt "]


@pytest.mark.parametrize("habit", tiny.TOKENIZERS)
def test_a_word_of_several_tokens_is_refused_with_proposals(habit):
    with pytest.raises(ContextError) as error:
        resolve(Context("a", "she felt deep", "shames", "guilt"), tiny.TOKENIZERS[habit]())
    message = str(error.value)
    assert "'a'" in message and "correct word 'shames'" in message and "shame" in message.split("nearest")[1]
    assert "competitor word" not in message and "\n" not in message


@pytest.mark.parametrize("habit", tiny.TOKENIZERS)
@pytest.mark.parametrize(
    "correct, competitor", [("zebra", "guilt"), ("shame", "qqq"), ("zebra", "qqq"), ("雪", "guilt")]
)
def test_words_the_tokenizer_does_not_hold_are_refused(habit, correct, competitor):
    with pytest.raises(ContextError, match="tokens|unknown"):
        resolve(Context("a", "she felt deep", correct, competitor), tiny.TOKENIZERS[habit]())


@pytest.mark.parametrize("habit", ["leading", "bare", "trailing", "metaspace"])
def test_two_spellings_of_one_token_are_refused(habit):
    with pytest.raises(ContextError, match="cannot follow this prompt as one token each"):
        resolve(Context("a", "she felt deep", "shame", " shame"), tiny.TOKENIZERS[habit]())


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(ContextError):
        resolve(Context("a", " ", "shame", "guilt"), tiny.bare())


def test_text_may_be_used_again(tmp_path):
    content = (
        "- {id: a, prompt: &p she felt, correct: c, competitor: d}\n- {id: b, prompt: *p, correct: e, competitor: f}"
    )
    assert [context.prompt for context in load_contexts(write(tmp_path, content))] == ["she felt", "she felt"]


@pytest.mark.parametrize("value", ["x" * 200_000, f"[{', '.join('x' * 50_000)}]"], ids=["text", "list"])
def test_what_is_shown_of_a_value_is_short(value, tmp_path):
    with pytest.raises(ContextError) as error:
        load_contexts(write(tmp_path, f"- {{id: a, prompt: b, correct: c, competitor: d, kind: [{value}]}}"))
    assert "kind is" in str(error.value) and len(str(error.value)) < 600


def test_everything_that_is_wrong_with_a_file_is_said_at_once(tmp_path):
    content = f"[{GOOD}, {{id: b}}, {GOOD}, {{id: c d, prompt: x, correct: y, competitor: z}}, shame]"
    with pytest.raises(ContextError) as error:
        load_contexts(write(tmp_path, content))
    message = str(error.value)
    assert "4 problems of the 5 entries" in message and "\n" not in message
    for words in ("Entry 2", "Entry 4", "'c d'", "Entry 5", "'a' 2 times"):
        assert words in message


# ------------------------------------------------------------------------------- a prompt is what the model reads


@pytest.fixture(scope="module")
def zoo_tokenizers():
    return [AutoTokenizer.from_pretrained(zoo_models.path(name)) for name in zoo_models.ALL]


def test_the_contexts_of_the_book_are_read_as_written(zoo_tokenizers):
    for tokenizer in zoo_tokenizers:
        for context in load_contexts():
            check_spelling(context, tokenizer)
        assert len([resolve(context, tokenizer) for context in load_contexts()]) == 10


UNKNOWN = {  # prompt -> characters to be named
    'Anna said "yes" and felt': ["'\"'"],
    "Anna saw 12 men and 3 dogs and felt": ["'12'", "'3'"],
    "Was Anna glad? She felt": ["'?'"],
    "What a day! She felt": ["'!'"],
    "Her words: she felt": ["':'"],
    "Anna (my friend) felt": ["'('", "')'"],
    "Über Anna felt": ["'ü'"],
    "Anna felt 🙂": ["'🙂'"],
    "Anna\tfelt": ["'\\t'"],
    "雪": ["'雪'"],
    "Anna <b>felt</b> very": ["'<'", "'>'", "'</'"],
}


@pytest.mark.parametrize("prompt, characters", UNKNOWN.items(), ids=UNKNOWN)
def test_a_prompt_that_would_be_altered_is_refused_by_its_characters(prompt, characters, zoo_tokenizers):
    for tokenizer in (zoo_tokenizers[0], zoo_tokenizers[5]):
        with pytest.raises(ContextError) as error:
            resolve(Context("a", prompt, "glad", "happy"), tokenizer)
        message = str(error.value)
        assert "does not know" in message and "\n" not in message
        assert all(character in message for character in characters)


@pytest.mark.parametrize("habit", tiny.TOKENIZERS)
@pytest.mark.parametrize("prompt", ["she felt QQ deep", "she felt deep 雪", "ß she felt deep"])
def test_unknown_letters_are_named_whatever_a_tokenizer_does_with_them(habit, prompt):
    with pytest.raises(ContextError, match="does not know '(qq|雪|ss)"):
        resolve(Context("a", prompt, "shame", "guilt"), tiny.TOKENIZERS[habit]())


def test_a_word_that_its_piece_does_not_spell_is_refused():
    with pytest.raises(ContextError, match="correct word 'shamé' is unknown|correct word 'shamé' is . tokens"):
        resolve(Context("a", "she felt deep", "shamé", "guilt"), tiny.bare())


def test_an_endless_prompt_is_refused_soon(zoo_tokenizers):
    started = time.perf_counter()
    with pytest.raises(ContextError, match=r"'\?'") as error:
        resolve(Context("a", "she felt " * 20_000 + "?", "glad", "happy"), zoo_tokenizers[0])
    assert time.perf_counter() - started < 10 and len(str(error.value)) < 500


class Greedy:
    """The longest piece that fits, from the left; letters otherwise."""

    def __init__(self, *pieces):
        self.pieces = [*sorted(pieces, key=len, reverse=True), *"abcdefghijklmnopqrstuvwxyz"]

    def __call__(self, text, **options):
        ids = []
        while text:
            piece = next(piece for piece in self.pieces if text.startswith(piece))
            ids.append(self.pieces.index(piece))
            text = text[len(piece) :]
        return {"input_ids": ids}

    all_special_tokens = ()

    def decode(self, ids, **options):
        return "".join(self.pieces[i] for i in ids)

    def get_vocab(self):
        return {piece: i for i, piece in enumerate(self.pieces)}


def test_a_word_is_not_blamed_for_what_it_is_not():
    apart = Greedy("she", " felt", " ", "shame")  # a space is a piece of its own
    with pytest.raises(ContextError) as error:
        resolve(Context("a", "she felt", "shame", "guilt"), apart)
    assert "the competitor word 'guilt' is 5 tokens" in str(error.value) and "correct word" not in str(error.value)
    mixed = Greedy("she", " felt", " ", " shame", "guilt ")  # each word is one token, but in another way of joining
    with pytest.raises(ContextError, match="'shame' and 'guilt' cannot follow this prompt as one token each"):
        resolve(Context("a", "she felt", "shame", "guilt"), mixed)


# ------------------------------------------------------------------------- the model reads what was typed, or nothing

ZH = ("我 喜欢 猫", "我 喜欢 狗", "สวัสดี", "私は 猫", "私は 犬")


def words_of(*texts, behind=""):
    """Every given word is one token, wherever it stands; other characters are tokens of their own."""
    words = sorted({word for text in texts for word in text.split()})
    letters = sorted(set("".join(texts)) | set("abcdefghijklmnopqrstuvwxyz \n\t."))
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(["<s>", "</s>", *letters, *words]))}
    t = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    t.pre_tokenizer = pre_tokenizers.Split(Regex("|".join([*words, r"[\s\S]"])), "isolated")
    t.decoder = decoders.Fuse()
    specials = [("<s>", 0), ("</s>", 1)]
    if behind:
        t.post_processor = processors.TemplateProcessing(single=f"<s> $A {behind}".strip(), special_tokens=specials)
    t.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=t, bos_token="<s>", eos_token="</s>")


JOINED = {  # prompt and two words -> the text that the model reads up to the first word
    "Chinese": (("我喜欢", "猫", "狗"), "我喜欢猫"),
    "Japanese": (("私は", "猫", "犬"), "私は猫"),
    "a Latin word after Chinese": (("我喜欢", "shame", "guilt"), "我喜欢shame"),
    "Latin": (("she felt", "shame", "guilt"), "she felt shame"),
    "a line end": (("she felt\n", "shame", "guilt"), "she felt\nshame"),
    "two line ends": (("she felt\n\n", "shame", "guilt"), "she felt\n\nshame"),
    "a space of one's own": (("she felt ", "shame", "guilt"), "she felt shame"),
    "a line end and a space": (("she felt\n ", "shame", "guilt"), "she felt\n shame"),
    "a tab before": (("\tshe felt", "shame", "guilt"), "\tshe felt shame"),
}


@pytest.mark.parametrize("template", ["", "</s>"], ids=["plain", "with EOS behind"])
@pytest.mark.parametrize("typed, text", JOINED.values(), ids=JOINED)
def test_the_model_reads_what_was_typed(typed, text, template):
    tokenizer = words_of(*ZH, "she felt shame guilt", behind=template)
    found = resolve(Context("a", *typed), tokenizer)
    ids = [*found.prompt_ids, found.correct_id]
    if template:
        assert ids.pop(0) == 0 and 1 not in ids  # BOS stays before the text; EOS does not stand between
    assert tokenizer.decode(ids) == text and tokenizer.decode([found.competitor_id]) == typed[2]


@pytest.mark.parametrize("prompt, named", [("she\nfelt", r"'\\n'"), ("she felt\n", r"'\\n'"), ("she  felt", "'  '")])
def test_blanks_that_a_tokenizer_drops_are_named(prompt, named):
    with pytest.raises(ContextError, match=f"does not know {named}"):
        resolve(Context("a", prompt, "shame", "guilt"), tiny.bare())


def test_a_special_token_that_is_added_anyway_is_not_typed_as_well():
    typed = Context("a", "<s>she felt", "shame", "guilt")
    with pytest.raises(ContextError, match="begins with '<s>', which the tokenizer adds by itself"):
        resolve(typed, words_of("she felt shame guilt", behind="</s>"))
    plain = words_of("she felt shame guilt")
    assert resolve(typed, plain).prompt_ids[0] == 0 != resolve(SHAME, plain).prompt_ids[0]


@pytest.mark.parametrize("place", range(3))
def test_a_text_with_nul_is_refused(place):
    typed = ["she felt", "shame", "guilt"]
    typed[place] += "\0"
    with pytest.raises(ContextError, match="holds NUL"):
        resolve(Context("a", *typed), words_of("she felt shame guilt", "\0"))


def test_a_prompt_on_which_the_tokenizer_gives_up_is_told():
    tokenizer = words_of("she felt shame guilt")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(q+q+)+z"), "isolated")
    with pytest.raises(ContextError, match="The tokenizer fails on 'she qqqq.*retry-limit"):
        resolve(Context("a", "she " + "q" * 60, "shame", "guilt"), tokenizer)


@pytest.mark.parametrize("given", [{"prompt": "she felt"}, "she felt", None, SHAME.__dict__], ids=str)
def test_what_is_no_context_is_told(given):
    with pytest.raises(ContextError, match=r"is no context; give a ph.Context\("):
        resolve(given, tiny.bare())


def test_sentences_of_wordnet_are_contexts():
    """Counted in another way: one for each competitor that a line of the file lists."""
    lines = [line.split("\t") for line in (Path(phantomlib.__file__).parent / "wordnet.tsv").read_text().splitlines()]
    rows = [row for row in lines if not row[0].startswith("#")]
    found = load_contexts("wordnet")
    assert len(found) == len({context.id for context in found}) == sum(len(row[3].split()) for row in rows) > 6000
    assert {context.prompt for context in found} == {row[1] for row in rows}
    assert all(len(context.prompt.split()) >= 4 and context.correct != context.competitor for context in found)
