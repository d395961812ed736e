"""No login and no secret parameter of a URL is left in a text, wherever the URL stands in it."""

from __future__ import annotations

import logging
from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import NotReady
from schemas.masking import MASK, masked, masked_url
from streams.logs import Masking

SECRETS = st.text(st.characters(codec="utf-8", exclude_categories=["Zs", "Zl", "Zp", "Cc"]), min_size=6, max_size=20).map(
    lambda text: f"q{text}q"
)
SCHEMES = st.sampled_from(["redis", "rediss", "https", "http", "s3", "kafka", "postgresql+psycopg"])


@given(SCHEMES, SECRETS, st.sampled_from(["", "user", "a b"]), st.booleans())
def test_a_login_is_masked_wherever_it_stands(scheme: str, secret: str, user: str, quoted: bool) -> None:
    written = quote(secret, safe="") if quoted else secret
    url = f"{scheme}://{quote(user)}:{written}@host:6379/0"
    for text in (url, f"cannot reach {url!s} at all", f"at='{url}'", f"a {url} b https://plain/x c"):
        assert written not in masked(text)
        assert MASK in masked(text)
    assert masked_url(url) == f"{scheme}://{MASK}@host:6379/0"
    assert written not in NotReady("c", f"at {url}").message
    assert written not in str(NotReady("c", f"at {url}"))


@given(
    st.sampled_from(["password", "token", "access_token", "PASSWORD", "api-key", "X-Amz-Signature", "client_secret"]), SECRETS
)
def test_a_secret_parameter_is_masked(name: str, secret: str) -> None:
    written = secret.replace("&", "")
    url = f"https://host/path?a=1&{name}={written}&b=2"
    for found in (masked(f"asked {url} twice"), masked_url(url)):
        assert written not in found
        assert MASK in found
    if "@" not in written:
        assert masked(f"asked {url} twice") == f"asked https://host/path?a=1&{name}={MASK}&b=2 twice"


@given(st.text("ab@&?=;:/", min_size=0, max_size=8), st.text("ab@&?=;:/", max_size=8))
def test_no_part_of_a_secret_is_left_beside_the_signs_that_urls_are_made_of(before: str, after: str) -> None:
    secret = f"{before.replace('&', '')}HIDDEN{after.replace('&', '')}"
    for url in (f"redis://:{secret}@host/0", f"https://host/p?token={secret}&b=1", f"https://u:{secret}@h/p?token={secret}&b"):
        for found in (masked(f"a {url} b"), masked_url(url)):
            assert "HIDDEN" not in found
            assert found.count(MASK) >= 1


@given(st.text(max_size=100).filter(lambda text: "://" not in text))
def test_text_without_a_url_stays(text: str) -> None:
    assert masked(text) == text


def test_a_url_without_a_secret_stays() -> None:
    for url in ("redis://127.0.0.1:6379/0", "https://host/a?k=5&b=c", "s3://bucket/prefix", "unix:///run/redis.sock"):
        assert masked(url) == masked_url(url) == url


def test_a_password_with_a_blank_is_masked_in_a_setting() -> None:
    assert masked_url("redis://:p w\nx@y@host") == f"redis://{MASK}@host"


def test_logs_are_masked_with_their_traces() -> None:
    try:
        raise ValueError("redis://:hidden@host is wrong")
    except ValueError as exc:
        record = logging.LogRecord(
            "x", logging.ERROR, "f", 1, "at %s", ("https://u:hidden@h/p",), (ValueError, exc, exc.__traceback__)
        )
    text = Masking("%(message)s").format(record)
    assert "hidden" not in text
    assert "Traceback" in text
    assert f"https://{MASK}@h/p" in text
