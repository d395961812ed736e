"""Masking of secrets in URLs, so that they are never printed."""

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
    """Mask the login of a URL. If the `@` lies in a secret parameter, the rest of the URL is masked, too."""
    return MASK if _WHOLE_PARAMETER.search(found[1]) else f"{MASK}@{found[2]}"


def masked(text: str) -> str:
    """Replace logins (`user:password@`) and secret query parameters of all URLs in a text by `MASK`.

    A URL ends at white space. Everything from `://` to the last `@` in it counts as a login, because a password that is not
    percent-encoded may contain any character. This may mask too much, but never too little.
    """
    if "://" not in text:
        return text
    return _PARAMETER.sub(rf"\1{MASK}", _LOGIN.sub(_without_login, text))


def masked_url(url: str) -> str:
    """Mask a text that is one URL, as `masked` does. It may contain any characters, including white space."""
    return _WHOLE_PARAMETER.sub(rf"\1{MASK}", _WHOLE_LOGIN.sub(_without_login, url))
