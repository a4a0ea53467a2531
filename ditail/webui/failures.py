"""Errors where the user sees them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import HTTPException

from ..errors import DitailError

log = logging.getLogger("ditail")


class Ditail(Exception):
    """A DitailError in the tab, where the WebUI shows an exception's class and text: "Ditail: ..."."""


@contextmanager
def errors_for_the_user(p) -> Iterator[None]:
    """Turn a DitailError into what job `p` came by: HTTP 422 for the API, the sentence for the tab."""
    try:
        yield
    except DitailError as error:
        log.error("%s", error)
        if getattr(p, "is_api", False):
            raise HTTPException(status_code=422, detail=str(error)) from error
        raise Ditail(str(error)) from error
