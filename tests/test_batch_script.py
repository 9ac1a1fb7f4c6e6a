"""Several commits in one call of the script do what the same commits do one by one."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import fakeredis
import pytest
from redis import Redis
from redis.exceptions import ResponseError
from support.servers import Server

from asyncsession.blob import Kind, encode_frame, head, key_tag
from asyncsession.delta import Op, encode
from asyncsession.protocol import Code
from asyncsession.scripts import SCRIPTS

KEYS = "abcdef"
SCENES = 400
AHEAD = 800  # ms: commits that are issued ahead of the server's clock have stamps that are known
IDLE, ABSOLUTE, LIMIT = 60_000, 3_600_000, 60_000


class Frame(NamedTuple):
    """A frame that is stored: how long the log is with it, and what it ends with."""

    length: int
    tip: bytes
    version: int


def six(number: int) -> bytes:
    return number.to_bytes(6, "big")


def frame(rng: random.Random, size: int) -> bytes:
    keys = rng.sample(KEYS, rng.randrange(1, 3))
    return encode_frame({key: encode(Op.SET, rng.randbytes(size)) for key in keys})


class Scene:
    """A stored session, and commits of it.

    Attributes:
        stored: what is under the key; None for nothing.
        words: of the commits, in pairs.
        issued: when most of them were, ms.
    """

    def __init__(self, seed: int, now: int) -> None:
        rng = self._rng = random.Random(seed)
        self.issued = now + AHEAD
        self._incarnation = rng.randbytes(8)
        self._ids = [rng.randbytes(16) for _ in range(8)]
        self._frames: list[Frame] = []
        self._is_small = True
        self._forgotten = now - 1 if rng.random() < 0.1 else 0
        kinds = (
            ["live"] * 16 + ["nothing"] * 3 + ["destroyed", "moved", "foreign", *4 * ["damaged"]]
        )
        self.stored = self._blob(rng.choice(kinds), now)
        # A commit whose own frame may be where the script does not look sends a snapshot, so it is
        # in no batch.
        is_seen = self._is_small or not self._frames
        self._taken = self._ids if is_seen else self._ids[1:7]
        self._bases = [self._base() for _ in range(rng.choice((1, 1, 3)))]
        is_new = self.stored is None and rng.random() < 0.8
        self.words: list[bytes] = []
        for number in range(rng.randrange(2, 9)):
            creates = rng.random() < (0.4 if is_new and number else 0.9 if is_new else 0.05)
            self.words += self._commit(creates=creates)

    def _blob(self, kind: str, now: int) -> bytes | None:
        rng = self._rng
        if kind == "nothing":
            return None
        if kind == "foreign":
            return rng.choice((b"", b"x", b"aS\x09L" + bytes(60), b"aS\x01L" + bytes(8)))
        if kind == "destroyed":
            return head(Kind.DESTROYED, self._incarnation)
        if kind == "moved":
            return head(Kind.MOVED, self._incarnation) + b"abc:successor"
        deadline = now - 1 if rng.random() < 0.05 else now + ABSOLUTE
        folded = rng.choice((0, 7, 600))
        retired = b"".join(
            six(now - 9000) + (self._ids[0] if n == 1 else rng.randbytes(16))
            for n in range(min(folded, rng.choice((0, 3, 520))))
        )
        log = b""
        for number in range(rng.randrange(1, 7)):
            own = self._ids[7] if number == 2 else rng.randbytes(16)
            size = rng.choice((10, 5000)) if number == 0 else rng.choice((0, 40))
            tip = six(now - 5000 + number) + own
            log += frame(rng, size) + tip
            self._frames.append(Frame(len(log), tip, folded + number + 1))
        self._is_small = len(log) < 4096 and folded < 500
        header = head(Kind.LIVE, self._incarnation) + six(now - 9000) + six(deadline)
        header += six(folded) + six(self._forgotten) + len(retired).to_bytes(4, "big")
        room = bytes(rng.choice((0, 6, 150, 400, 1500))) if len(log) > 4096 else b""
        if kind == "damaged":
            at = rng.choice(self._frames).length
            log = log[: at - 3] if rng.random() < 0.5 else log[:at] + b"\0\0\1" + log[at:]
        return header + retired + log + room

    def _base(self) -> bytes:
        """Return a base that is there, or was compacted, or is not there."""
        rng = self._rng
        if not self._frames:
            return (99).to_bytes(4, "big") + rng.randbytes(22) + six(1)
        length, tip, version = rng.choice(self._frames)
        kind = rng.random()
        if kind < 0.15:
            length += 37
        elif kind < 0.2:
            tip = rng.randbytes(22)
        elif kind < 0.25:
            version += 1
        return length.to_bytes(4, "big") + tip + six(version)

    def _commit(self, *, creates: bool) -> tuple[bytes, bytes]:
        rng, issued = self._rng, self.issued
        if rng.random() < 0.05:
            issued = rng.choice((issued - 20_000, issued + 20_000, 0))
        elif self._forgotten and self._frames and rng.random() < 0.5:
            issued = self._forgotten
        incarnation = rng.randbytes(8) if rng.random() < 0.03 else self._incarnation
        terms = [
            rng.choice(self._taken) if rng.random() < 0.3 else rng.randbytes(16),
            head(Kind.LIVE, incarnation),
            six(issued),
            six(rng.choice((IDLE, 10 * IDLE, 10 * ABSOLUTE))),
            six(ABSOLUTE),
            rng.choice((LIMIT, LIMIT, LIMIT, LIMIT, 60, 700)).to_bytes(4, "big"),
        ]
        if not creates:
            terms.append(rng.choice(self._bases))
            tags = b"".join(map(key_tag, rng.sample(KEYS, rng.randrange(1, 3))))
            terms.append(rng.choice((b"", b"", b"*", tags, tags)))
        return b"".join(terms), frame(rng, rng.choice((0, 30, 200)))


def told(reply: bytes) -> tuple[Any, ...]:
    """Return a reply without the server's time."""
    commit_id, code, found, data = reply[6:22], reply[22], reply[23], reply[24:]
    if not found and code in (Code.OK, Code.APPLIED, Code.CONFLICT):
        data = data[:12] + data[24:]  # when it was created
    return Code(code), commit_id, found, data


def kept(redis: Any, key: str) -> tuple[bytes | None, int]:
    stored, ttl = redis.get(key), redis.pttl(key)
    if stored is not None and stored[3:4] == b"L":
        stored = stored[:12] + stored[24:]
    return stored, round(ttl / 10_000)


@pytest.fixture(params=["memory", "valkey9", "redis8", "redis-system"])
def redis(request: pytest.FixtureRequest, get_server: Callable[[str], Server]) -> Iterator[Any]:
    if request.param == "memory":
        client: Any = fakeredis.FakeRedis()
    else:
        client = Redis.from_url(get_server(request.param).url, protocol=2)
    client.script_load(SCRIPTS["commit"].source)
    yield client
    client.close()


def run(redis: Any, key: str, words: list[bytes]) -> Any:
    return redis.evalsha(SCRIPTS["commit"].sha, 1, key, *words)


def server_time(redis: Any) -> int:
    seconds, microseconds = redis.time()
    return int(seconds * 1000 + microseconds // 1000)


def test_a_batch_does_what_its_commits_do_one_by_one(redis: Any) -> None:
    seen: Counter[Code] = Counter()
    found: Counter[int] = Counter()
    together, apart = (f"batch-{os.urandom(4).hex()}:{name}" for name in ("one", "many"))
    for seed in range(SCENES):
        ended = False
        while not ended:  # anew where this took so long that the clock has overtaken the stamps
            scene = Scene(seed, server_time(redis))
            for key in (together, apart):
                redis.delete(key)
                if scene.stored is not None:
                    redis.set(key, scene.stored, px=IDLE // 2)
            pairs = [scene.words[at : at + 2] for at in range(0, len(scene.words), 2)]
            one_by_one = [told(run(redis, apart, pair)) for pair in pairs]
            all_at_once = [told(reply) for reply in run(redis, together, scene.words)]
            ended = server_time(redis) < scene.issued
        assert all_at_once == one_by_one, seed
        (one, expires), (other, expires_too) = kept(redis, together), kept(redis, apart)
        assert abs(expires - expires_too) <= 1, seed
        if one is not None and other is not None:  # room behind the log may differ
            assert one.rstrip(b"\0") == other.rstrip(b"\0"), seed
            assert len(one) - len(one.rstrip(b"\0")) <= max(1500, len(one) // 16)
        else:
            assert one == other
        seen.update(reply[0] for reply in one_by_one)
        found.update(reply[2] for reply in one_by_one)
    redis.delete(together, apart)
    assert set(seen) == set(Code), "each reply was met"
    assert set(found) == {0, 1, 2}


def test_a_batch_is_one_write_to_the_store(redis: Any) -> None:
    """So a server that refuses it has done none of them."""
    key = f"batch-{os.urandom(4).hex()}"
    redis.set(key, b"", px=1000)
    scene = next(
        scene
        for seed in range(100)
        if (scene := Scene(seed, server_time(redis))).stored is None and len(scene.words) > 6
    )
    redis.delete(key)
    redis.rpush(key, "not a string")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        run(redis, key, scene.words)
    assert redis.lrange(key, 0, -1) == [b"not a string"]
    redis.delete(key)


def test_a_base_before_the_damage_is_not_one_behind_it(redis: Any) -> None:
    """The log is looked through from each base that a commit of the batch names."""
    key, rng, now = f"batch-{os.urandom(4).hex()}", random.Random(1), server_time(redis)
    log, bases = b"", []
    for number in range(3):
        tip = six(now - 5000 + number) + rng.randbytes(16)
        log += (frame(rng, 9) if number != 1 else b"\0\0\1\0damage") + tip
        bases.append(len(log).to_bytes(4, "big") + tip + six(number + 1))
    live = head(Kind.LIVE, b"incarnat")
    header = live + six(now - 9000) + six(now + ABSOLUTE) + bytes(16)
    redis.set(key, header + log, px=IDLE)
    words: list[bytes] = []
    for base in (bases[2], bases[0], bases[2]):
        terms = (
            rng.randbytes(16),
            live,
            six(now),
            six(IDLE),
            six(ABSOLUTE),
            LIMIT.to_bytes(4, "big"),
        )
        words += (b"".join((*terms, base)), frame(rng, 9))
    replies = [told(reply) for reply in run(redis, key, words)]
    assert [reply[0] for reply in replies] == [Code.OK, Code.UNREADABLE, Code.OK]
    redis.delete(key)
