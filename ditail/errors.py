"""The one exception that is meant for the user."""

MAX_SENTENCE = 400
MAX_SHOWN = 60


class DitailError(ValueError):
    """A sentence that tells the user what is wrong; `key` is the setting it is about, if it is about one.

    The sentence is one line of at most MAX_SENTENCE printable characters, whatever was put into it.
    """

    def __init__(self, sentence: str, key: str | None = None):
        super().__init__(_one_line(sentence, MAX_SENTENCE))
        self.key = key


def shown(value) -> str:
    """A value as a sentence shows it: on one line, not too long."""
    # Python refuses to write out integers of thousands of digits, and `repr` of a long list takes as long as it is.
    if isinstance(value, int) and abs(value) >= 10**60:
        return "a very large number"
    if isinstance(value, str | bytes | list | tuple):
        value = value[: MAX_SHOWN + 1]
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a list of such integers, or of lists nested too deeply
        text = f"a {type(value).__name__}"
    return _one_line(text, MAX_SHOWN)


def named(name) -> str:
    """A name as a sentence mentions it: like `shown`, without the quotation marks of a text."""
    return _one_line(name[: MAX_SHOWN + 1], MAX_SHOWN) if isinstance(name, str) else shown(name)


def _one_line(text: str, length: int) -> str:
    # Control characters and lone surrogates (JSON may hold both) would spoil a terminal, or can't be sent at all.
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))
    return text if len(text) <= length else text[: length - 3] + "..."
