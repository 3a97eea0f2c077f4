"""How values are shown: short, and without the control characters that would act on a terminal."""

import reprlib

LONGEST_MESSAGE = 3000  # characters: room for the names of 40 layers


class _Short(reprlib.Repr):
    """Python's repr, whose middle is left out where it is long."""

    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:  # Python writes no number of more than 4300 digits
            return f"a number of {x.bit_length()} bits"


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlong = 40
_SHORT.maxlist = _SHORT.maxdict = 6
_SHORT.maxlevel = 4


def shown(value: object) -> str:
    """The repr of a value for a message."""
    return _SHORT.repr(value)


def message(text: str) -> str:
    """A message that is safe to print, whatever it quotes: its middle is left out where it is long."""
    if len(text) > LONGEST_MESSAGE:
        half = LONGEST_MESSAGE // 2
        text = f"{text[:half]} ... ({len(text) - 2 * half:,} characters left out) ... {text[-half:]}"
    return printable(text)


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8; the name of a file that has other bytes cannot."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def printable(text: str) -> str:
    """The text with each control character, and what is no character, as its escape; lines and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
