"""Text of strangers prints in one line and obeys no escape sequence; commands mean what they say."""

import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kandinsky.printing import escaped, shell_command, shell_word

HARMFUL = "\n\r\t\x1b\x00\x7f\x85\x9b\u2028\u2029\u202e\u2066\u200e\ud800\udcff"
TEXTS = st.text(st.sampled_from(HARMFUL + "ab'\"\\$`! панда🐼é0F"), max_size=30)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("a panda", "a panda"),
        ("панда 🐼 – 熊猫 👩‍🚀", "панда 🐼 – 熊猫 👩‍🚀"),
        ("a\nkandinsky rm", r"a\nkandinsky rm"),
        ("\x1b]0;title\x07", r"\x1b]0;title\a"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("a\u2028b\x85c", r"a\u2028b\u0085c"),
        ("\ud800 \udcff", r"\ud800 \udcff"),
        (ValueError("x\r"), r"x\r"),
    ],
)
def test_what_a_terminal_obeys_is_escaped(text: object, printed: str) -> None:
    assert escaped(text) == printed
    assert escaped("a\nb\r", keep="\n") == "a\nb\\r"


@given(TEXTS)
@settings(max_examples=300)
def test_escaped_text_is_one_harmless_line(text: str) -> None:
    for printed in (escaped(text), shell_word(text)):
        assert not set(printed) & set(HARMFUL)
        assert printed.encode().decode().splitlines() in ([printed], [])
    assert escaped(escaped(text)) == escaped(text)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_bash_reads_the_words_back() -> None:
    words = ["", "a b", "it's", "$HOME `x` \\n", "two\nlines\r\t\x0b\x0c\a\b", "\x1b[31mred", "-- \u2028'\\\u202e!"]
    words += ["é\x85", "\x1b5 \x01F", "\udcff\n", "панда\n🐼"]  # a hex digit follows; a byte that is no text
    line = "printf '%s\\0' " + shell_command(words)
    assert "\n" not in line
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    assert [word.decode(errors="surrogateescape") for word in done.stdout.split(b"\0")[:-1]] == words


def test_plain_words_stay_as_people_type_them() -> None:
    assert shell_command(["kandinsky", "generate", "--", "a panda"]) == "kandinsky generate -- 'a panda'"
