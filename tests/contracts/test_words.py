"""The field's own words (what is written, and what is not): in cards, which people read through `models` and `show`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import kandinsky

CARDS = Path(kandinsky.__file__).parent / "cards"
NOT_WRITTEN = r"films?|(?:painted|made) anew|another house|states made|picture of sound|on a processor|not built yet"


@pytest.mark.parametrize("card", sorted(CARDS.glob("*.toml")), ids=lambda path: path.stem)
def test_cards_speak_as_the_field_does(card: Path) -> None:
    assert re.findall(rf"\b(?:{NOT_WRITTEN})\b", card.read_text(encoding="utf-8"), re.IGNORECASE) == []
