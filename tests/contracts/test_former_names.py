"""Names that were public once and have a better one now stay importable."""

import kandinsky
from kandinsky.model import values


def test_text_embeddings_keep_their_former_name() -> None:
    assert kandinsky.TextStates is kandinsky.TextEmbeddings is values.TextStates
    assert "TextStates" not in kandinsky.__all__ and "TextStates" not in dir(kandinsky)
