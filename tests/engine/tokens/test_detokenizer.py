"""Text as it becomes readable: pieces add up to the whole, characters stay whole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from sae_actor.engine.tokens.detokenizer import IncrementalDetokenizer
from tests.engine.tiny import tiny_tokenizer

BYTES = tiny_tokenizer()
_ALPHABET = BYTES.get_vocab()


def decode(ids: list[int]) -> str:
    text: str = BYTES.decode(ids, skip_special_tokens=True)
    return text


def encode(text: str) -> list[int]:
    ids: list[int] = BYTES(text).input_ids
    return ids


@given(st.text(max_size=30), st.text(max_size=30))
def test_pieces_are_whole_characters_and_add_up(prompt: str, answer: str) -> None:
    decoder = IncrementalDetokenizer(decode, encode(prompt))
    pieces = [decoder.push(token) for token in encode(answer)]
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in answer
    assert "".join(pieces) + decoder.flush() == answer
    assert decoder.flush() == ""


@given(st.binary(max_size=12))
def test_bytes_that_are_no_text_come_out_as_the_tokenizer_shows_them(junk: bytes) -> None:
    # The model may make any bytes; the id of a byte is found through a text that holds it.
    ids = [_id_of_byte(each) for each in junk]
    decoder = IncrementalDetokenizer(decode, encode("a"))
    assert "".join(decoder.push(token) for token in ids) + decoder.flush() == decode(ids)


def test_a_prompt_that_ends_within_a_character_is_completed() -> None:
    first, second = encode("é")
    decoder = IncrementalDetokenizer(decode, (*encode("caf"), first))
    assert decoder.push(second) == "é"
    assert decoder.push(encode("s")[0]) == "s"


def test_special_tokens_are_no_text() -> None:
    decoder = IncrementalDetokenizer(decode, encode("<|user|>"))
    pieces = [decoder.push(token) for token in (*encode("a"), 257, *encode("b"))]
    assert pieces == ["a", "", "b"]


def test_a_decoder_that_drops_the_first_space_keeps_the_answers() -> None:
    words = Tokenizer(models.WordLevel({"▁Hello": 0, "▁world": 1, "!": 2, "▁so": 3}, unk_token="!"))
    words.decoder = decoders.Metaspace()
    decoder = IncrementalDetokenizer(words.decode, [0])
    assert [decoder.push(token) for token in (1, 2, 3, 1)] == [" world", "!", " so", " world"]


def test_what_is_complete_is_not_held_for_a_half_character_behind_it() -> None:
    """Byte-level vocabularies have tokens such as ` \xe2\x80`: the blank is text at once."""
    decoder = IncrementalDetokenizer(_bytes, [])
    assert [decoder.push(each) for each in (0x41, 0x42_E282, 0xAC, 0x43)] == ["A", "B", "€", "C"]


def test_bytes_that_never_become_a_character_come_out_on_the_way() -> None:
    decoder = IncrementalDetokenizer(_bytes, [])
    pieces = [decoder.push(0xFF) for _ in range(6)]
    assert pieces == ["", "", "", *["\ufffd"] * 3]
    assert decoder.flush() == "\ufffd" * 3


def test_a_run_of_bytes_that_is_shown_as_broken_until_it_is_whole() -> None:
    """SentencePiece's byte fallback: all of a run or nothing."""

    def fallback(ids: list[int]) -> str:
        try:
            return bytes(ids).decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(ids)

    decoder = IncrementalDetokenizer(fallback, [])
    said = "€é€".encode()
    assert [decoder.push(each) for each in said] == ["", "", "€", "", "é", "", "", "€"]


def _bytes(ids: list[int]) -> str:
    """Each id the bytes of its number."""
    return b"".join(each.to_bytes((each.bit_length() + 7) // 8) for each in ids).decode(errors="replace")


def _id_of_byte(byte: int) -> int:
    kept = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
    moved = [each for each in range(256) if each not in kept]
    return int(_ALPHABET[chr(byte if byte in kept else 256 + moved.index(byte))])
