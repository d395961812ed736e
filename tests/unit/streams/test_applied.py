"""The row of the applied source offset: its bytes, and its earlier formats."""

from __future__ import annotations

import pytest

from schemas.errors import NotReady
from streams.state.partitions import pack_applied, unpack_applied


def test_golden_bytes() -> None:
    source, changelog = bytes(range(16)), bytes(range(16, 32))
    assert pack_applied(513, source, changelog).hex() == "020102000000000000" + source.hex() + changelog.hex()
    assert pack_applied(-1).hex() == "02ffffffffffffffff" + 32 * "00"


def test_format_1_had_no_topic() -> None:
    assert unpack_applied(bytes.fromhex("010102000000000000")) == (513, bytes(16), bytes(16))
    ids = bytes(range(16)), bytes(range(16, 32))
    assert unpack_applied(pack_applied(513, *ids)) == (513, *ids)


@pytest.mark.parametrize("row", [b"", b"\x03" + bytes(40), b"\x02" + bytes(8), b"\x01" + bytes(40), b"\x02" + bytes(24)])
def test_what_a_newer_version_wrote_is_not_guessed(row: bytes) -> None:
    with pytest.raises(NotReady, match="newer version"):
        unpack_applied(row)
