"""The one exception that is meant for the user."""


class DitailError(ValueError):
    """A sentence that tells the user what is wrong; `key` is the setting it is about, if it is about one."""

    def __init__(self, sentence: str, key: str | None = None):
        super().__init__(sentence)
        self.key = key


def shown(value) -> str:
    """A value as a sentence shows it: on one line, not too long."""
    # Python refuses to write out integers of thousands of digits.
    text = "a very large number" if isinstance(value, int) and abs(value) >= 10**60 else " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
