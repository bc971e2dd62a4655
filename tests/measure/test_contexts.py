"""Contexts: files that are read or refused, words that become single tokens whatever a tokenizer does with spaces."""

import pytest
import tiny
import yaml

from phantomlib.errors import ContextError
from phantomlib.measure.contexts import Context, load_contexts, resolve

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
