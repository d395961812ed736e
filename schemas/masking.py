"""Secrets in URLs are never printed: one function masks them, wherever a URL may stand in a text."""

from __future__ import annotations

import re

__all__ = ["MASK", "masked", "masked_url"]

MASK = "***"
_NAMES = r"[^=&\s]*(?:passw|pwd|secret|token|api[_-]?key|access[_-]?key|credential|signature|auth)[^=&\s]*"
_LOGIN = re.compile(r"(?<=://)(\S*)@([^&\s]*)")
_PARAMETER = re.compile(rf"([?&;]{_NAMES}=)[^&\s]*", re.IGNORECASE)
_WHOLE_LOGIN = re.compile(r"(?<=://)(.*)@([^&]*)", re.DOTALL)
_WHOLE_PARAMETER = re.compile(rf"([?&;]{_NAMES}=)[^&]*", re.IGNORECASE | re.DOTALL)


def _without_login(found: re.Match[str]) -> str:
    """The part of a URL after its login; the `@` may as well stand in a secret parameter, whose rest then goes too."""
    return MASK if _WHOLE_PARAMETER.search(found[1]) else f"{MASK}@{found[2]}"


def masked(text: str) -> str:
    """A text in which logins (`user:password@`) and secret query parameters of URLs are replaced by `MASK`.

    A URL ends at white space. Everything between `://` and the last `@` before that counts as a login, because a password that
    was not percent-encoded may hold any character: too much may be masked, never too little.
    """
    if "://" not in text:
        return text
    return _PARAMETER.sub(rf"\1{MASK}", _LOGIN.sub(_without_login, text))


def masked_url(url: str) -> str:
    """As `masked`, of a text that is one URL, whatever characters it holds."""
    return _WHOLE_PARAMETER.sub(rf"\1{MASK}", _WHOLE_LOGIN.sub(_without_login, url))
