"""The one exception that is meant for the user."""


class DitailError(ValueError):
    """A sentence that tells the user what is wrong; `key` is the setting it is about, if it is about one."""

    def __init__(self, sentence: str, key: str | None = None):
        super().__init__(sentence)
        self.key = key
