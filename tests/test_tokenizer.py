"""Any text goes in and comes back; nothing is downloaded."""

from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tefusion.data.motion import vocabulary
from tefusion.data.prompt import worded
from tefusion.tokenizer import EOS, PAD, byte_level_tokenizer
from tefusion.train import load_tokenizer

SENTENCES = ["Which way does the red square move?", "It moves to the left.", "It moves to the right."]
TOKENIZER = byte_level_tokenizer(SENTENCES)


def ids(text, tokenizer=TOKENIZER):
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


@given(st.text())
def test_any_text_comes_back(text):
    """Lone surrogates are no text: hypothesis leaves them out of what UTF-8 can hold."""
    text = text.encode("utf-8", "ignore").decode()
    assert TOKENIZER.decode(ids(text), clean_up_tokenization_spaces=False) == text
    assert not set(ids(text)) & {TOKENIZER.pad_token_id, TOKENIZER.eos_token_id}


def test_the_special_ids_are_those_of_the_presets():
    assert (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id) == (0, 1)
    assert (TOKENIZER.pad_token, TOKENIZER.eos_token) == (PAD, EOS)


def test_known_words_are_tokens():
    assert len(ids("It moves to the left.")) == 6
    assert len(ids("zyx qwv")) == 7


def test_questions_of_the_generated_set_are_whole_words_to_the_tiny_decoder():
    tokenizer = load_tokenizer("tiny")
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    for text in vocabulary():
        asked = worded(text, [f"B. {text}"])
        assert len(ids(asked, tokenizer)) == len(split(asked)), asked


def test_letters_of_options_start_differently():
    assert len({ids(letter)[0] for letter in "ABCDEFGH"}) == 8


def test_the_vocabulary_is_bounded_and_holds_every_byte():
    many = [f"word{i} thing{i * i}" for i in range(500)]
    for size in (258, 300, 512):
        assert len(byte_level_tokenizer(many, size)) == size


def test_the_same_sentences_make_the_same_tokenizer():
    again = byte_level_tokenizer(list(SENTENCES))
    assert again.get_vocab() == TOKENIZER.get_vocab()


def test_a_folder_holds_it(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "It moves <pad> to the left, naïvely.<eos>"
    assert ids(text, loaded) == ids(text)
    assert loaded.decode(ids(text)) == text
