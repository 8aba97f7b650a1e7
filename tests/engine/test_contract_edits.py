"""What the port `Engine` promises of edits and where they hold."""

from __future__ import annotations

from typing import Literal

import pytest

from sae_actor.domain.refs import Edit, Span, When
from sae_actor.errors import BadRequestError
from tests.engine.asking import active, finished, request
from tests.engine.conftest import Given

pytestmark = pytest.mark.anyio

STRONG = Edit(feature=3, strength=40.0, exclude=())


async def test_an_sae_without_edits_changes_nothing(given: Given) -> None:
    ids = await given.ids()
    bare = await finished(given.engine, request(ids))
    assert await given.attach(5) > 0
    assert await finished(given.engine, request(ids, active(5))) == bare


async def test_an_edit_changes_the_text_and_is_counted(given: Given) -> None:
    ids = await given.ids()
    await given.attach(5)
    bare = await finished(given.engine, request(ids))
    end = await finished(given.engine, request(ids, active(5, STRONG)))
    assert end.token_ids != bare.token_ids
    run = len(ids) + end.receipt.tokens_generated - 1
    assert end.receipt.tokens_edited == run
    assert end.edited == ((0, run),)
    assert end.receipt.mean_relative_norm > 0
    assert (await finished(given.engine, request(ids))) == bare


@pytest.mark.parametrize(
    ("positions", "covered"),
    [
        ("all", ((0, 18),)),
        ("prompt", ((0, 11),)),
        ("generated", ((11, 18),)),
        ("response", ((10, 18),)),
        ("last_prompt", ((10, 11),)),
        (Span(tokens=(2, 3, 17, 500)), ((2, 4), (17, 18))),
        (Span(from_=9, to=13), ((9, 13),)),
        (Span(from_=16), ((16, 18),)),
        (Span(to=2), ((0, 2),)),
    ],
)
async def test_positions(given: Given, positions: str | Span, covered: tuple[tuple[int, int], ...]) -> None:
    """11 prompt tokens and 8 generated ones: 18 positions are run."""
    await given.attach(5)
    edit = Edit(feature=3, strength=0.1, positions=positions, exclude=())  # type: ignore[arg-type]  # mypy sees str
    end = await finished(given.engine, request(await given.ids(), active(5, edit)))
    assert end.edited == covered
    assert end.receipt.tokens_edited == sum(behind - first for first, behind in covered)


async def test_a_condition_counts_where_it_holds(given: Given) -> None:
    await given.attach(5)
    ids = await given.ids()
    bare = await finished(given.engine, request(ids))
    always, never = (Edit(feature=3, strength=40.0, when=When(2, above), exclude=()) for above in (-1.0, 1e6))
    held = await finished(given.engine, request(ids, active(5, always)))
    assert held.edited == ((0, 18),)
    assert held.token_ids != bare.token_ids
    assert (await finished(given.engine, request(ids, active(5, never)))).edited == ()


async def test_the_sink_is_left_out(given: Given) -> None:
    await given.attach(5)
    ids = await given.ids()
    for edit in (Edit(feature=3, strength=0.1, exclude=("sink",)), Edit(feature=3, strength=0.1)):
        end = await finished(given.engine, request(ids, active(5, edit)))
        assert (end.excluded, end.edited, end.edited_sinks) == (((0, 1),), ((1, 18),), ())
        assert (end.receipt.tokens_excluded, end.receipt.tokens_edited) == (1, 17)


async def test_an_edit_of_a_sink_is_told(given: Given) -> None:
    await given.attach(5)
    ids = await given.ids()
    for positions, told in (("all", ((0, 1),)), ("generated", ()), (Span(from_=1), ())):
        edit = Edit(feature=3, strength=0.1, positions=positions, exclude=())  # type: ignore[arg-type]  # mypy sees str
        end = await finished(given.engine, request(ids, active(5, edit)))
        assert end.edited_sinks == told


async def test_reconstruct_covers_all_but_sinks(given: Given) -> None:
    await given.attach(5)
    end = await finished(given.engine, request(await given.ids(), active(5, mode="reconstruct")))
    assert (end.excluded, end.edited) == (((0, 1),), ((1, 18),))
    assert end.edited_sinks == ()


async def test_reconstruct_covers_sinks_where_that_is_asked_for(given: Given) -> None:
    await given.attach(5)
    ids = await given.ids()
    for edits in ((), (Edit(feature=3, strength=0.1),)):
        sae = active(5, *edits, mode="reconstruct", exclude=())
        end = await finished(given.engine, request(ids, sae))
        assert (end.excluded, end.edited, end.edited_sinks) == ((), ((0, 18),), ((0, 1),))
    special = active(5, Edit(feature=3, strength=0.1), mode="reconstruct", exclude=("special",))
    end = await finished(given.engine, request((*ids[:4], 256, *ids[4:]), special))
    assert (end.excluded, end.edited) == (((4, 5),), ((0, 4), (5, 19)))


CHAT = [
    {"role": "system", "content": "Be kind"},
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": "And you?"},
]


async def test_turns_of_a_chat(given: Given) -> None:
    chat = await given.engine.tokenize(CHAT)
    assert chat.turns is not None
    assert [turn.role for turn in chat.turns] == [message["role"] for message in CHAT]
    assert [turn.first for turn in chat.turns] == [0, *(turn.stop for turn in chat.turns[:-1])]
    assert ["".join(chat.tokens[slice(*turn.content)]) for turn in chat.turns] == [each["content"] for each in CHAT]
    assert chat.turns[-1].stop < len(chat.token_ids), "the answer that is opened is no turn"
    assert (await given.engine.tokenize("no chat")).turns == ()


async def test_positions_by_role(given: Given) -> None:
    await given.attach(5)
    chat = await given.engine.tokenize(CHAT)
    assert chat.turns is not None
    roles: tuple[Literal["system", "user", "assistant"], ...] = ("system", "user", "assistant")
    for role in roles:
        edit = Edit(feature=3, strength=0.1, positions=Span(role=role), exclude=())
        end = await finished(given.engine, request(chat.token_ids, active(5, edit), turns=chat.turns))
        covered = {at for turn in chat.turns if turn.role == role for at in range(turn.first, turn.stop)}
        assert {at for first, behind in end.edited for at in range(first, behind)} == covered
    with pytest.raises(BadRequestError):
        given.engine.generate(request(chat.token_ids, active(5, edit)))


async def test_what_the_template_wrote_is_left_out(given: Given) -> None:
    await given.attach(5)
    chat = await given.engine.tokenize(CHAT)
    assert chat.turns is not None
    said = {at for turn in chat.turns for at in range(*turn.content)}
    edit = Edit(feature=3, strength=0.1, positions="prompt", exclude=("template",))
    end = await finished(given.engine, request(chat.token_ids, active(5, edit), turns=chat.turns))
    assert {at for first, behind in end.edited for at in range(first, behind)} == said
    assert end.receipt.tokens_edited + end.receipt.tokens_excluded == len(chat.token_ids)
    plain = await finished(given.engine, request(await given.ids(), active(5, edit)))
    assert plain.edited == ((0, 11),), "a prompt that is no chat has no template"


async def test_special_tokens_are_left_out(given: Given) -> None:
    await given.attach(5)
    ids = await given.ids()
    edit = Edit(feature=3, strength=0.1, positions="prompt", exclude=("special", "sink"))
    end = await finished(given.engine, request((*ids[:4], 256, *ids[4:]), active(5, edit)))
    assert (end.excluded, end.edited) == (((0, 1), (4, 5)), ((1, 4), (5, 12)))
