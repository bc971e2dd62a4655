"""What a refusal is like, one short paragraph that names what is wrong; and a damage that must be refused."""

from contextlib import contextmanager

import pytest


@contextmanager
def refused(kind, words, longest=1000):
    """An error of this kind is raised inside, whose message matches ``words``; gives a list that will hold the message."""
    said = []
    with pytest.raises(kind, match=words) as error:
        yield said
    said.append(str(error.value))
    assert "\n" not in said[0] and len(said[0]) < longest


def flipped(whole: bytes, bit: int) -> bytes:
    """The same bytes, but for one bit."""
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)
