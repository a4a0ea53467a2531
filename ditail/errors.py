"""The one exception that is meant for the user."""

MAX_SENTENCE = 400
MAX_SHOWN = 60


class DitailError(ValueError):
    """An error to show to the user. key: the setting or file concerned, or None. sentence: what is wrong with it.

    `str(error)` is one line of at most MAX_SENTENCE printable characters.
    """

    def __init__(self, key: str | None, sentence: str):
        super().__init__(_one_line(sentence if key is None else f"{key}: {sentence}", MAX_SENTENCE))
        self.key, self.sentence = key, sentence


def shown(value) -> str:
    """`repr` of a value for an error message: one line of at most MAX_SHOWN characters."""
    # Python refuses to write out integers of thousands of digits, and `repr` of a long list is slow.
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
    """A name for an error message: like `shown`, but without quotation marks around a string."""
    return _one_line(name[: MAX_SHOWN + 1], MAX_SHOWN) if isinstance(name, str) else shown(name)


def _one_line(text: str, length: int) -> str:
    # JSON may hold control characters, which garble a terminal, and lone surrogates, which can't be encoded.
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))
    return text if len(text) <= length else text[: length - 3] + "..."
