import msgspec

from depthcut.healing.card import heal_card
from depthcut.records import TextFacts, TextPart
from tests.reporting.run_for_tests import make_facts, make_heal


def test_the_card_names_every_text_with_its_digest_and_share() -> None:
    record = make_heal(make_facts(6), make_facts(4, source="healed"))
    assert f"| text | `builtin` (digest `{record.text.digest}`) |" in heal_card(
        record, None, name="x"
    )
    parts = tuple(
        TextPart(source=source, digest=source * 3, share=0.5, sequences=1, tokens=tokens)
        for source, tokens in (("a", 900), ("b", 100))
    )
    text = TextFacts(source="a and b", digest="d", sequences=2, tokens=1000, parts=parts)
    card = heal_card(msgspec.structs.replace(record, text=text), None, name="x")
    assert "| text | `a` (digest `aaa`, 90%); `b` (digest `bbb`, 10%) |" in card
