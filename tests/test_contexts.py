"""Contexts: files that are read or refused, words that become single tokens whatever a tokenizer does with spaces."""

import os
import sys
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
LIE = "After the lie, Anna felt a deep sense of"
SECONDS = 20  # of the processor, within which a refusal must come


def briefly(value) -> str:
    return repr(value)[:40]


def refused(words, call, *given) -> str:
    """A call must raise a ContextError, soon, in one short paragraph that holds one of ``words`` (between bars)."""
    started = time.process_time()
    with pytest.raises(ContextError) as error:
        call(*given)
    said = str(error.value)
    assert any(word in said for word in words.split("|")), said[:2000]
    assert "\n" not in said and len(said) < 4000 and time.process_time() - started < SECONDS
    return said


def write(folder, text):
    path = folder / "contexts.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_the_book_has_ten_contexts():
    contexts = load_contexts()
    assert len(contexts) == 10 == len({c.id for c in contexts})
    assert all(c.prompt == c.prompt.strip() and c.correct != c.competitor for c in contexts)
    assert {c.kind for c in contexts} == {"near-synonym"}


def test_a_file_is_read_as_written(tmp_path):
    entries = [
        {"id": "one", "prompt": "Élan vital is", "correct": "naïve", "competitor": "simple"},
        {"id": "two", "prompt": "x", "correct": "a", "competitor": "A", "kind": "control"},
    ]
    path = write(tmp_path, yaml.safe_dump(entries, allow_unicode=True))
    assert load_contexts(path) == load_contexts(str(path)) == [Context(**entry) for entry in entries]


def entry(**changes):
    words = {"id": "a", "prompt": f"'{LIE}'", "correct": "shame", "competitor": "guilt"} | changes
    return "- {" + ", ".join(f"{key}: {value}" for key, value in words.items()) + "}\n"


BOMB = "".join(f"- &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
MARKUP = ("<script>alert(1)</script>", "'<img src=x onerror=alert(1)>'", "</script>", "'=1+1'", "'a:b'", "'a|b'")

FILES = {  # what must be said -> contents of contexts files
    "non-empty YAML list": ("", "null", "3", "!!set {a, b}", "# nothing", entry()[2:]),
    "not valid YAML": (
        *("9" * 5000, "!!float abc", "!!int abc", "!!bool abc", "!!timestamp abc", "!!binary é", "!!omap 3"),
        *("!!python/object/apply:os.system [exit]", "!!python/name:os.system", "- !!python/module:os", "- !secret x"),
        *("- !" + "x" * 50_000 + " a", "- *nothing", "[" * 100_000, "{" * 100_000, "- " * 100_000, "? " * 20_000),
        *(f"{entry()}---\n{entry()}", "- {id: \x07}", "- {id: \x00}", "- {[a]: b}", "- {{a: b}: c}"),
        *(b"- \xff\xfe", entry().encode("utf-16"), b"\x89PNG\r\n\x1a\n", entry(id="2024-13-45"), "-\tid: a\n\tprompt: b"),
    ),
    "write it out": (
        *("- &a [x, x, x, x, x, x, x, x, x]\n" + BOMB, entry(kind="{x: &x [y, y], z: [*x, *x]}"), "- &a [*a]"),
        *("- &a {x: *a}", "- &a {id: a}\n- {<<: *a}", "- &a {<<: *a}"),
    ),
    "larger than 300 kB": (entry() * 4000, "#" * 400_000, " " * 400_000),
    "given twice": (entry(correct="x, correct: y"), entry(correct="x, 'correct': y")),
    "Entry 1": (
        *("!!omap [a: 1]", "- 3", f"- {'x' * 200_000}", "- [" + "x, " * 50_000 + "]", "- {id: a, prompt: b, correct: c}"),
        "- {" + ", ".join(f"k{i}: {i}" for i in range(10_000)) + "}",
    ),
    "Entry 2": (f"{entry()}-\n",),
    "not valid YAML|Entry 1": (f"- {{{'k' * 100_000}: 1}}",),
    "5000 problems of the 5000 entries": ("- 3\n" * 5000,),
    "id is": (
        *(entry(id=one) for one in (*MARKUP, "../../etc/passwd", "a b", '"a\\nb"', "7", "''", "a" * 250)),
        entry(id="'" + "a b" * 30_000 + "'"),
    ),
    "'a' 3 times": (entry() * 3,),
    "two different words": (entry(correct="' guilt '"),),
    "correct is": (entry(correct="[shame]"), entry(correct="~"), entry(correct=".nan"), entry(correct="yes")),
    "prompt is": (entry(prompt="{a: b}"), entry(prompt="'  \t '")),
    "kind is": (entry(kind="1"), entry(kind="[" + "x, " * 50_000 + "]"), entry(kind=f"[{'x' * 200_000}]")),
    "'wrong'": (entry(wrong="e"),),
    "'3'": (entry().replace("}", ", 3: e}"),),
}  # fmt: skip


@pytest.mark.parametrize("words, content", [(words, one) for words, some in FILES.items() for one in some], ids=briefly)
def test_a_file_that_is_no_list_of_contexts_is_refused(words, content, tmp_path):
    refused(words, load_contexts, write(tmp_path, content))


NOWHERE = ["", ".", "no/such.yaml", "x" * 5000, "a\0b", "a\nb", "/dev/zero", None, 7, "loop", "pipe"]


@pytest.mark.parametrize("source", NOWHERE, ids=briefly)
def test_a_source_that_is_no_file_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    os.mkfifo("pipe")
    refused("No contexts file", load_contexts, source)


def test_a_source_that_may_never_end_is_refused():
    refused("cannot be read (not a regular file)", load_contexts, "/proc/self/mem")
    refused("larger than 300 kB|not valid YAML", load_contexts, sys.executable)


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


def test_a_word_that_the_tokenizer_does_not_hold_is_refused_with_proposals():
    said = refused("correct word 'shames'", resolve, Context("a", "she felt deep", "shames", "guilt"), tiny.bare())
    assert "'a'" in said and "shame" in said.split("nearest")[1] and "competitor word" not in said


@pytest.mark.parametrize("habit", ["leading", "leading with BOS", "metaspace"])
@pytest.mark.parametrize(
    "words, read, pieces",
    [
        (("shames", "guilt"), "she felt deep", ["shame", "guilt"]),
        (("shamed", "shames"), "she felt deep shame", ["d", "s"]),
    ],
)
def test_words_of_several_tokens_are_compared_where_they_part(habit, words, read, pieces):
    tokenizer = tiny.TOKENIZERS[habit]()
    found = resolve(Context("a", "she felt deep", *words), tokenizer)
    assert tokenizer.decode(found.prompt_ids, skip_special_tokens=True).strip() == read
    assert [tokenizer.decode([piece]).strip() for piece in (found.correct_id, found.competitor_id)] == pieces
    assert f"at token {len(read.split()) - 2} of each" in found.compared and all(
        f"“{p}”" in found.compared for p in pieces
    )
    for word, piece in zip(
        words, (found.correct_id, found.competitor_id), strict=True
    ):  # what the whole text begins with
        text = tokenizer(f"she felt deep {word}")["input_ids"]
        assert tuple(text[: len(found.prompt_ids) + 1]) == (*found.prompt_ids, piece)


@pytest.mark.parametrize("habit", tiny.TOKENIZERS)
@pytest.mark.parametrize("words", [("shame", "shames"), ("shames", "shame")])
def test_a_word_that_begins_with_the_other_is_refused(habit, words):
    refused("do not part|unknown", resolve, Context("a", "she felt deep", *words), tiny.TOKENIZERS[habit]())


WORDS = [("zebra", "guilt"), ("shame", "qqq"), ("zebra", "qqq"), ("雪", "guilt"), ("shame", " shame")]


@pytest.mark.parametrize("habit", tiny.TOKENIZERS)
@pytest.mark.parametrize("correct, competitor", WORDS)
def test_words_the_tokenizer_does_not_hold_or_holds_as_one_are_refused(habit, correct, competitor):
    words = "unknown" if correct != competitor.strip() else "do not part at a token after this prompt"
    refused(words, resolve, Context("a", "she felt deep", correct, competitor), tiny.TOKENIZERS[habit]())


def test_a_prompt_without_tokens_is_refused():
    refused("", resolve, Context("a", " ", "shame", "guilt"), tiny.bare())


def test_text_may_be_used_again(tmp_path):
    content = entry(prompt="&p she felt") + entry(id="b", prompt="*p")
    assert [context.prompt for context in load_contexts(write(tmp_path, content))] == ["she felt", "she felt"]


def test_everything_that_is_wrong_with_a_file_is_said_at_once(tmp_path):
    content = f"{entry()}- {{id: b}}\n{entry()}{entry(id='c d')}- shame"
    said = refused("4 problems of the 5 entries", load_contexts, write(tmp_path, content))
    assert all(words in said for words in ("Entry 2", "Entry 4", "'c d'", "Entry 5", "'a' 2 times"))


# ------------------------------------------------------------------------------- a prompt is what the model reads


@pytest.fixture(scope="module")
def zoo_tokenizers():
    return [AutoTokenizer.from_pretrained(zoo_models.path(name)) for name in zoo_models.ALL]


def test_the_contexts_of_the_book_are_read_as_written(zoo_tokenizers):
    for tokenizer in zoo_tokenizers:
        for context in load_contexts():
            check_spelling(context, tokenizer)
        assert len([resolve(context, tokenizer) for context in load_contexts()]) == 10


UNKNOWN = {  # prompt -> what must be said
    'Anna said "no" and felt': "does not know '\"'",
    "Anna said “no” and felt": "does not know '“', '”'",
    "Anna saw 12 men and 3 dogs and felt": "does not know '12', '3'",
    "Was Anna glad? She felt": "does not know '?'",
    "What a day! She felt": "does not know '!'",
    "Her words: she felt": "does not know ':'",
    "Anna came; she felt": "does not know ';'",
    "Anna (my friend) felt": "does not know '(', ')'",
    "Über Anna felt": "does not know 'ü'",
    "At the cafe\u0301 Anna felt": "does not know",
    "Anna 🙂 felt": "does not know '🙂'",
    "Anna 👨‍👩‍👧 felt": "does not know",
    "安娜 felt": "does not know '安娜'",
    "آنا felt": "does not know",
    "Anna \u202efelt": "does not know",
    "An\u200bna felt": "does not know",
    "An\u00adna felt": "does not know",
    "\ufeffAnna felt": "does not know",
    "Anna\tfelt": "does not know '\\t'",
    "Anna\nfelt": "does not know '\\n'",
    "Anna \x1b[31m felt": "does not know",
    "Anna <b>felt</b> very": "does not know '<', '>', '</'",
    "Anna $\\frac$ felt": "does not know",
    "Anna\0felt": "or NUL",
    "Anna \udc80 felt": "half a character",
    "Anna felt " * 20_000 + "?": "does not know '?'",
}


@pytest.mark.parametrize("prompt, words", UNKNOWN.items(), ids=briefly)
def test_a_prompt_that_would_be_altered_is_refused_by_its_characters(prompt, words, zoo_tokenizers):
    for tokenizer in (zoo_tokenizers[0], zoo_tokenizers[5]):
        assert len(refused(words, resolve, Context("a", prompt, "glad", "happy"), tokenizer)) < 600


IN_PIECES = ("zyzzyva", "deep shame", "x" * 50_000)  # some tokenizers spell them
NO_TOKENS = (
    "shamé",
    "7",
    "?",
    "🙂",
    "<script>",
    "sha\nme",
    "sha\0me",
)


@pytest.mark.parametrize("word", NO_TOKENS, ids=briefly)
def test_a_word_that_is_no_token_is_refused(word, zoo_tokenizers):
    words = "or NUL" if "\0" in word else f"the correct word {word[:8]!r} is|the correct word '{word[:20]}"
    for tokenizer in (zoo_tokenizers[0], zoo_tokenizers[5]):
        refused(words, resolve, Context("a", LIE, word, "guilt"), tokenizer)


@pytest.mark.parametrize("word", IN_PIECES, ids=briefly)
def test_a_word_in_pieces_is_read_as_it_is_typed_or_refused(word, zoo_tokenizers):
    words, spelt = Context("a", LIE, word, "guilt"), 0
    for tokenizer in (zoo_tokenizers[0], zoo_tokenizers[5]):
        if tokenizer.decode(tokenizer(word, add_special_tokens=False)["input_ids"]).strip() != word:
            refused(f"the correct word {word[:8]!r} is|the correct word '{word[:20]}", resolve, words, tokenizer)
            continue
        found, spelt = resolve(words, tokenizer), spelt + 1
        assert found.compared and word.startswith(tokenizer.decode([found.correct_id]).strip())
    assert spelt


@pytest.mark.parametrize("habit", tiny.TOKENIZERS)
@pytest.mark.parametrize("prompt", ["she felt QQ deep", "she felt deep 雪", "ß she felt deep"])
def test_unknown_letters_are_named_whatever_a_tokenizer_does_with_them(habit, prompt):
    words = "does not know 'qq|does not know '雪|does not know 'ss"
    refused(words, resolve, Context("a", prompt, "shame", "guilt"), tiny.TOKENIZERS[habit]())


def test_a_word_that_its_piece_does_not_spell_is_refused():
    refused("correct word 'shamé' is", resolve, Context("a", "she felt deep", "shamé", "guilt"), tiny.bare())


class Greedy:
    """The longest piece that fits, from the left; letters otherwise."""

    def __init__(self, *pieces):
        self.pieces = [*sorted(pieces, key=len, reverse=True), *"abcdefghijklmnopqrstuvwxyz?"]

    def __call__(self, text, **options):
        ids = []
        while text:
            piece = next((piece for piece in self.pieces if text.startswith(piece)), "?")
            ids.append(self.pieces.index(piece))
            text = text[len(piece) :]
        return {"input_ids": ids}

    all_special_tokens = ()

    def decode(self, ids, **options):
        return "".join(self.pieces[i] for i in ids)

    def get_vocab(self):
        return {piece: i for i, piece in enumerate(self.pieces)}


def test_a_word_is_not_blamed_for_what_it_is_not():
    words, apart = (
        Context("a", "she felt", "shame", "guilté"),
        Greedy("she", " felt", " ", "shame"),
    )  # spaces are pieces
    assert "correct word" not in refused("the competitor word 'guilté' is unknown", resolve, words, apart)


# ------------------------------------------------------------------------- the model reads what was typed, or nothing

ZH = (
    "我 喜欢 猫",
    "我 喜欢 狗",
    "สวัสดี",
    "私は 猫",
    "私は 犬",
    "ｱﾅﾀﾊ ｽｷ ｷﾗ",
    "ㄅㄆ ㄈ ㄊ",
    "ꀀꀁ ꀃ ꀅ",
    "ᥐᥑ ᥓ ᥕ",
    "ꦏꦒ ꦕ ꦚ",
)


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
    "Japanese in narrow letters": (("ｱﾅﾀﾊ", "ｽｷ", "ｷﾗ"), "ｱﾅﾀﾊｽｷ"),
    "Bopomofo": (("ㄅㄆ", "ㄈ", "ㄊ"), "ㄅㄆㄈ"),
    "Yi": (("ꀀꀁ", "ꀃ", "ꀅ"), "ꀀꀁꀃ"),
    "Tai Le": (("ᥐᥑ", "ᥓ", "ᥕ"), "ᥐᥑᥓ"),
    "Javanese": (("ꦏꦒ", "ꦕ", "ꦚ"), "ꦏꦒꦕ"),
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


@pytest.mark.parametrize("prompt, named", [("she\nfelt", r"'\n'"), ("she felt\n", r"'\n'"), ("she  felt", "'  '")])
def test_blanks_that_a_tokenizer_drops_are_named(prompt, named):
    refused(f"does not know {named}", resolve, Context("a", prompt, "shame", "guilt"), tiny.bare())


def test_a_special_token_that_is_added_anyway_is_not_typed_as_well():
    typed, adding = Context("a", "<s>she felt", "shame", "guilt"), words_of("she felt shame guilt", behind="</s>")
    refused("begins with '<s>', which the tokenizer adds by itself", resolve, typed, adding)
    plain = words_of("she felt shame guilt")
    assert resolve(typed, plain).prompt_ids[0] == 0 != resolve(SHAME, plain).prompt_ids[0]


def test_a_prompt_on_which_the_tokenizer_gives_up_is_told():
    tokenizer = words_of("she felt shame guilt")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(q+q+)+z"), "isolated")
    with pytest.raises(ContextError, match="The tokenizer fails on 'she qqqq.*retry-limit"):
        resolve(Context("a", "she " + "q" * 60, "shame", "guilt"), tokenizer)


@pytest.mark.parametrize("given", [{"prompt": "she felt"}, "she felt", None, SHAME.__dict__], ids=str)
def test_what_is_no_context_is_told(given):
    refused("is no context; give a ph.Context(", resolve, given, tiny.bare())


def test_sentences_of_wordnet_are_contexts():
    """Counted in another way: one for each competitor that a line of the file lists."""
    lines = [line.split("\t") for line in (Path(phantomlib.__file__).parent / "wordnet.tsv").read_text().splitlines()]
    rows = [row for row in lines if not row[0].startswith("#")]
    found = load_contexts("wordnet")
    assert len(found) == len({context.id for context in found}) == sum(len(row[3].split()) for row in rows) > 6000
    assert {context.prompt for context in found} == {row[1] for row in rows}
    assert all(len(context.prompt.split()) >= 4 and context.correct != context.competitor for context in found)
