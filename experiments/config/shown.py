"""How values are shown: short, and without the control characters that would act on a terminal."""

import reprlib

LONGEST_MESSAGE = 3000  # characters: room for the names of 40 layers
LONGEST_VALUE = 300


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
    return _without_middle(_SHORT.repr(value), LONGEST_VALUE)


def message(text: str) -> str:
    """A message that is safe to print, whatever it quotes: its middle is left out where it is long."""
    return printable(_without_middle(text, LONGEST_MESSAGE))


def _without_middle(text: str, most: int) -> str:
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} ... ({len(text) - most:,} more characters) ... {text[-half:]}"


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8; the name of a file that has other bytes cannot."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def printable(text: str) -> str:
    """The text with each control character, and what is no character, as its escape; lines and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
