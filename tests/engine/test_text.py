"""Text as it becomes readable: pieces add up to the whole, characters and stop strings stay whole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from sae_actor.engine.text import StopStrings, TextDecoder
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
    decoder = TextDecoder(decode, encode(prompt))
    pieces = [decoder.push(token) for token in encode(answer)]
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in answer
    assert "".join(pieces) + decoder.flush() == answer
    assert decoder.flush() == ""


@given(st.binary(max_size=12))
def test_bytes_that_are_no_text_come_out_as_the_tokenizer_shows_them(junk: bytes) -> None:
    # The model may make any bytes; the id of a byte is found through a text that holds it.
    ids = [_id_of_byte(each) for each in junk]
    decoder = TextDecoder(decode, encode("a"))
    assert "".join(decoder.push(token) for token in ids) + decoder.flush() == decode(ids)


def test_a_prompt_that_ends_within_a_character_is_completed() -> None:
    first, second = encode("é")
    decoder = TextDecoder(decode, (*encode("caf"), first))
    assert decoder.push(second) == "é"
    assert decoder.push(encode("s")[0]) == "s"


def test_special_tokens_are_no_text() -> None:
    decoder = TextDecoder(decode, encode("<|user|>"))
    pieces = [decoder.push(token) for token in (*encode("a"), 257, *encode("b"))]
    assert pieces == ["a", "", "b"]


def test_a_decoder_that_drops_the_first_space_keeps_the_answers() -> None:
    words = Tokenizer(models.WordLevel({"▁Hello": 0, "▁world": 1, "!": 2, "▁so": 3}, unk_token="!"))
    words.decoder = decoders.Metaspace()
    decoder = TextDecoder(words.decode, [0])
    assert [decoder.push(token) for token in (1, 2, 3, 1)] == [" world", "!", " so", " world"]


@given(
    st.lists(st.text(alphabet="ab", max_size=4), max_size=12),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_cut_like_a_search_in_the_whole_text(pieces: list[str], stop: list[str]) -> None:
    stops = StopStrings(stop)
    shown, stopped = "", False
    for at, piece in enumerate(pieces):
        text, stopped = stops.push(piece)
        shown += text
        assert not any(each in shown for each in stop)
        if stopped:
            break
        held = "".join(pieces[: at + 1])[len(shown) :]
        assert not held or any(each.startswith(held) for each in stop)
    if not stopped:
        shown += stops.flush()
    whole = "".join(pieces)
    found = [at for at in (whole.find(each) for each in stop) if at >= 0]
    assert stopped == bool(found)
    if found:
        # Of two that begin at different places, the one that is complete first ends the text.
        assert whole.startswith(shown)
        assert any(whole.startswith(each, len(shown)) for each in stop)
    else:
        assert shown == whole


def test_what_may_become_a_stop_string_is_held_back() -> None:
    stops = StopStrings(("END",))
    assert stops.push("the E") == ("the ", False)
    assert stops.push("N") == ("", False)
    assert stops.push("E") == ("EN", False)
    assert stops.push("ND of it") == ("", True)
    stops = StopStrings(("END",))
    assert stops.push("E") == ("", False)
    assert stops.flush() == "E"


def _id_of_byte(byte: int) -> int:
    kept = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
    moved = [each for each in range(256) if each not in kept]
    return int(_ALPHABET[chr(byte if byte in kept else 256 + moved.index(byte))])
