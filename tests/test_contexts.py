"""Contexts: files that are read or refused, words that become single tokens whatever a tokenizer does with spaces."""

import time
from itertools import pairwise

import pytest
import tiny
import yaml
from transformers import AutoTokenizer

from phantomlib.contexts import Context, check_spelling, load_contexts, resolve
from phantomlib.control_contexts import ANTONYMS
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
MALFORMED = {  # content -> what the message must name
    "empty": ("", "non-empty"),
    "only a comment": ("# nothing\n", "non-empty"),
    "empty list": ("[]", "non-empty"),
    "a mapping": (GOOD, "list"),
    "a word": ("shame", "list"),
    "entries that are words": ("[shame, guilt]", "Entry 1"),
    "an entry that is empty": (f"- {GOOD}\n-\n", "Entry 2"),
    "not YAML": ("- {id: a", "not valid YAML"),
    "tabs": ("-\tid: a\n\tprompt: b", "not valid YAML"),
    "not UTF-8": (b"- id: caf\xe9\n", "not valid YAML"),
    "binary": (b"\x89HDF\r\n\x1a\n\x00\x00", "not valid YAML"),
    "a date that does not exist": ("- id: 2024-13-45\n", "not valid YAML"),
    "code": ("- !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    "nested beyond reason": ("[" * 600, "not valid YAML"),
    "missing competitor": ("- {id: a, prompt: b, correct: c}", "Entry 1"),
    "unknown key": ("- {id: a, prompt: b, correct: c, competitor: d, wrong: e}", "wrong"),
    "number as key": ("- {id: a, prompt: b, correct: c, competitor: d, 3: e}", "'3'"),
    "null prompt": ("- {id: a, prompt: , correct: c, competitor: d}", "prompt is None"),
    "blank prompt": ('- {id: a, prompt: "  ", correct: c, competitor: d}', "prompt is '  '"),
    "YAML's yes": ("- {id: a, prompt: b, correct: yes, competitor: d}", "correct is True"),
    "a number as a word": ("- {id: a, prompt: b, correct: 3, competitor: d}", "correct is 3"),
    "a list of words": ("- {id: a, prompt: b, correct: c, competitor: [d, e]}", "competitor is ['d', 'e']"),
    "a date as id": ("- {id: 2024-01-01, prompt: b, correct: c, competitor: d}", "id is"),
    "number as kind": ("- {id: a, prompt: b, correct: c, competitor: d, kind: 1}", "kind is 1"),
    "same word twice": ("- {id: a, prompt: b, correct: c, competitor: c}", "both 'c'"),
    "same word but for spaces": ('- {id: a, prompt: b, correct: " c", competitor: "c "}', "both"),
    "same id twice": (f"[{GOOD}, {GOOD}, {GOOD}]", "'a' 3 times"),
    "a key twice": ("- {id: a, prompt: b, correct: c, competitor: d, correct: e}", "'correct' is given twice"),
    "a key twice in other words": ("- {id: a, prompt: b, correct: c, competitor: d, 'id': e}", "'id' is given twice"),
    "markup as id": ("- {id: <script>alert(1)</script>, prompt: b, correct: c, competitor: d}", "id is '<script>"),
    "a path as id": ("- {id: ../a, prompt: b, correct: c, competitor: d}", "id is '../a'"),
    "blanks in an id": ("- {id: a b, prompt: b, correct: c, competitor: d}", "id is 'a b'"),
    "integer that is none": ("- {id: !!int abc, prompt: b, correct: c, competitor: d}", "not valid YAML"),
    "timestamp that is none": ("- {id: !!timestamp abc, prompt: b, correct: c, competitor: d}", "not valid YAML"),
    "integer of 5,000 digits": ("- {id: " + "9" * 5000 + "}", "not valid YAML"),
    "a tag without end": ("- !" + "x" * 100_000 + " {id: a}", "not valid YAML"),
    "larger than anyone writes": ("# " + "x" * 400_000, "larger than 300 kB"),
}


@pytest.mark.parametrize("content, named", MALFORMED.values(), ids=MALFORMED)
def test_malformed_files_are_refused(content, named, tmp_path):
    path = write(tmp_path, content)
    with pytest.raises(ContextError) as error:
        load_contexts(path)
    assert named in str(error.value) and str(path.name) in str(error.value) or "Context 'a'" in str(error.value)
    assert "\n" not in str(error.value)


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


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghij")
)
BOMBS = {
    "lists of lists": f"- {{id: a, prompt: b, correct: c, competitor: d, wrong: {{{BOMB.replace(chr(10), ', ')}}}}}",
    "lists as an entry": BOMB,
    "mappings": "- &a {x: 1}\n- &b {x: *a, y: *a}\n- &c {x: *b, y: *b}\n",
    "a list that holds itself": "- &a [*a]\n",
    "merged mappings": "- &a {id: a, prompt: b}\n- {<<: *a, correct: c, competitor: d}\n",
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
def test_values_that_unfold_are_refused_at_once(content, tmp_path):
    started = time.perf_counter()
    with pytest.raises(ContextError, match="repeats a list or mapping; write it out"):
        load_contexts(write(tmp_path, content))
    assert time.perf_counter() - started < 5


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


def test_a_file_that_cannot_be_read_is_refused():
    with pytest.raises(
        ContextError, match="'/proc/self/mem' cannot be read"
    ):  # whoever asks: its first byte is nowhere
        load_contexts("/proc/self/mem")


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


def test_the_contexts_of_the_book_and_the_controls_are_read_as_written(zoo_tokenizers):
    for tokenizer in zoo_tokenizers:
        for context in [*load_contexts(), *load_contexts(ANTONYMS)]:
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
    "Anna\x00 felt": ["'\\x00'"],
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
