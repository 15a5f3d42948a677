"""Words of any script, whatever a tokenizer makes of its characters."""

import unicodedata

import pytest
from uniseg.graphemecluster import grapheme_cluster_boundaries

from lvlm_interp.errors import InputError
from lvlm_interp.inputs.prompt import Prompter
from lvlm_interp.inputs.spelling import LOST, spelled
from lvlm_interp.inputs.words import Word, first_word, split_sentences, split_words
from tests.tokenizers import KINDS, TEXTS


class Processor:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer


def prompter(kind):
    return Prompter(Processor(KINDS[kind]()), "")


def words_of(made, text):
    ids = made.word_ids(text)
    return ids, split_words([made.read(i) for i in ids], ids, made.text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("language", TEXTS)
def test_words_are_whole_in_any_script(kind, language):
    """Every token is in one word, no word cuts what a reader sees as one character, and the words are the text."""
    made, text = prompter(kind), TEXTS[language]
    ids, found = words_of(made, text)
    assert [i for word in found for i in range(word.start, word.stop)] == list(range(len(ids)))
    assert made.text(ids).strip() == text
    assert "".join("".join(word.text.split()) for word in found) == "".join(text.split())
    assert not any(LOST in word.text for word in found)
    edges, place = set(grapheme_cluster_boundaries(text)), 0
    for word in found:
        place = text.index(word.text, place)
        assert {place, place + len(word.text)} <= edges
        place += len(word.text)
    if language == "English":
        assert [word.text for word in found] == "A well-known cat , isn't it ? 3.5 m² of it .".split()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("language", TEXTS)
def test_sentences_are_whole_in_any_script(kind, language):
    made, text = prompter(kind), TEXTS[language]
    ids = made.word_ids(text)
    found = split_sentences([made.read(i) for i in ids], ids, made.text)
    assert [i for one in found for i in range(one.start, one.stop)] == list(range(len(ids)))
    assert not any(LOST in one.text for one in found)
    counts = {"Chinese": 2, "Japanese": 2, "Hindi": 2, "Arabic": 2, "English": 2}
    assert len(found) == counts.get(language, len(found))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("这只猫。", ["这", "只", "猫", "。"]),
        ("केला बैंगनी है।", ["केला", "बैंगनी", "है", "।"]),
        ("バナナは紫", ["バナナ", "は", "紫"]),
        ("👩‍🚀 👍🏽", ["👩‍🚀", "👍🏽"]),
        ("🇩🇪🇫🇷", ["🇩🇪", "🇫🇷"]),
        ("الموزة بنفسجية.", ["الموزة", "بنفسجية", "."]),
        ("H₂O and 1½", ["H₂O", "and", "1½"]),
        ("top-left's", ["top-left's"]),
    ],
)
@pytest.mark.parametrize("kind", ["bytes", "byte fallback"])
def test_characters_of_several_tokens_make_words(kind, text, words):
    """Tokens of single bytes: words are Unicode's, and none of its bytes is lost."""
    made = prompter(kind)
    ids, found = words_of(made, text)
    assert [word.text for word in found] == words
    control = split_words([LOST if ord(max(made.read(i))) > 127 or "<0x" in made.read(i) else "a" for i in ids])
    assert [word.text for word in control] != words  # what single tokens read as does not tell


def test_tokens_that_begin_and_end_inside_of_characters():
    """A token with the end of one character and the beginning of the next ties both into one word."""
    pieces = ["猫".encode()[:2], "猫".encode()[2:] + "犬".encode()[:1], "犬".encode()[1:], "。".encode()]

    def decode(ids):
        return b"".join(pieces[i] for i in ids).decode(errors="replace")

    tokens = [piece.decode(errors="replace") for piece in pieces]
    assert split_words(tokens, range(4), decode) == (Word("猫犬", 0, 3), Word("。", 3, 4))
    text = spelled(tokens, range(4), decode)
    assert text.starts == (0, 0, 1, 2) and text.whole == (True, False, False, True)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ((" ", "cat", " ", "dog"), [("cat", 0, 2), ("dog", 2, 4)]),
        (("cat", ".", " "), [("cat", 0, 1), (".", 1, 3)]),
        (("cat", "\n", "\n\n", " dog"), [("cat", 0, 1), ("\n", 1, 2), ("\n\n", 2, 3), ("dog", 3, 4)]),
        (("", "cat"), [("cat", 0, 2)]),
        (("cat", ""), [("cat", 0, 2)]),
        (("3", ".", "5", " cm"), [("3.5", 0, 3), ("cm", 3, 4)]),
        (("'", "cat", "'", " is"), [("'cat'", 0, 3), ("is", 3, 4)]),
        (("- ", "a", "\n", "-", " b"), [("-", 0, 1), ("a", 1, 2), ("\n", 2, 3), ("-", 3, 4), ("b", 4, 5)]),
    ],
)
def test_blanks_belong_to_words_and_line_breaks_stand_alone(tokens, words):
    assert split_words(tokens) == tuple(Word(*word) for word in words)


def test_pictures_are_content_and_lost_bytes_are_not():
    told = {text: Word(text, 0, 1).is_content for text in ("👩‍🚀", "✓", "猫", "है", "5", ".", "", "“", LOST)}
    assert [text for text, content in told.items() if content] == ["👩‍🚀", "✓", "猫", "है", "5"]


def test_ones_own_segmenter():
    """What knows a language's words cuts better; it must give the text back."""
    made = prompter("bytes")
    ids = made.word_ids("สีม่วงสวย")
    tokens = [made.read(i) for i in ids]
    found = split_words(tokens, ids, made.text, lambda text: ["สีม่วง", "สวย"])
    assert [word.text for word in found] == ["สีม่วง", "สวย"]
    assert len(split_words(tokens, ids, made.text)) > 2  # Unicode knows no dictionary
    with pytest.raises(InputError, match="are not the text"):
        split_words(tokens, ids, made.text, lambda text: ["สี"])


def test_half_characters_are_shown_as_bytes():
    """By token, as SentencePiece writes them; and a token is found by how it reads."""
    for kind in ("byte-level", "byte fallback"):
        made = prompter(kind)
        read = [made.read(i) for i in made.word_ids("犬")]
        assert read[-3:] == ["<0xE7>", "<0x8A>", "<0xAC>"] and not any(LOST in text for text in read)
        for token in [*made.word_ids("犬 cat")[1:], *made.word_ids("a猫 well")]:
            assert made.token_id(made.read(token)) == token
        with pytest.raises(InputError, match="no token of this model reads as ' unheard'"):
            made.token_id(" unheard")


@pytest.mark.parametrize(
    ("tokens", "first"),
    [
        (("cat",), (1, False)),
        (("cat", " dog"), (1, True)),
        (("cat", "."), (1, False)),  # cat.log
        (("cat", ".", " So"), (1, True)),
        (("3", ".", "5"), (3, False)),
        (("猫", "犬"), (1, True)),
    ],
)
def test_where_a_word_is_known_to_end(tokens, first):
    assert first_word(tokens, range(len(tokens)), None) == first


def test_the_texts_hold_what_they_are_for():
    """The control: letters of several bytes, marks, and characters that join."""
    assert any(unicodedata.category(c) == "Mn" for c in TEXTS["Thai"]) and "‍" in TEXTS["emoji"]
    assert all(len(text.encode()) > len(text) for text in TEXTS.values())


@pytest.mark.parametrize("gives", [lambda text: [1, 2], lambda text: None, lambda text: [("it", "noun")]])
def test_a_segmenter_gives_texts(gives):
    with pytest.raises(InputError, match=r"the segmenter .* gives texts"):
        split_words(["it", " is"], [5, 6], None, gives)
