"""What is stored is damaged, or somebody else's: every verb refuses it, and leaves it as it is."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from redis import Redis
from support.backends import Backend
from support.compiled import only_interpreted
from support.logs import blob, set_
from support.proxy import Fault, FaultProxy, is_script

from asyncsession import (
    CommitOutcomeUnknown,
    InvalidSessionData,
    Session,
    SessionConflict,
    SessionError,
    SyncSessionManager,
    merge,
)
from asyncsession.blob import FORMAT, MAX_KEYS, Kind, encode_frame
from asyncsession.ids import session_handle, store_key

STORES = ("valkey9", "sync-valkey9", "memory")
MERGE: Any = {"guarded": merge.reject}

Damage = Callable[[bytes], bytes]


def put(at: int, patch: bytes) -> Damage:
    """Return what overwrites the bytes at a place."""
    return lambda stored: stored[:at] + patch + stored[at + len(patch) :]


DAMAGE: dict[str, Damage] = {
    "nothing": lambda stored: b"",
    "one byte": lambda stored: stored[:1],
    "cut within the head": lambda stored: stored[:11],
    "cut within the header": lambda stored: stored[:39],
    "the header alone": lambda stored: stored[:40],
    "cut within the last frame": lambda stored: stored[:-1],
    "cut within its trailer": lambda stored: stored[:-20],
    "cut within the first frame": lambda stored: stored[:60],
    "a byte too many": lambda stored: stored + b"\0",
    "too few zeros for a frame": lambda stored: stored + bytes(5),
    "zeros and more": lambda stored: stored + bytes(99) + b"x",
    "a frame beyond the end behind": lambda stored: stored + b"\xff" * 28,
    "ids beyond the end": put(36, b"\xff\xff\xff\xff"),
    "ids cut through": put(36, b"\0\0\0\x01"),
    "zeros for a log": lambda stored: stored[:40] + bytes(1000),
    "another kind": put(3, b"X"),
    "a newer format": put(2, b"\x02"),
    "another magic": put(0, b"As"),
    "a pickle": lambda stored: pickle.dumps({"a": 1}),
    "JSON": lambda stored: b'{"a": 1}',
    "a mark that names nothing": lambda stored: stored[:3] + Kind.MOVED + stored[4:12],
    "a mark that names too much": lambda s: s[:3] + Kind.MOVED + s[4:12] + b"{abc}:" + b"x" * 4000,
}


class Victim:
    """A session in the store, which is damaged after others have loaded it."""

    def __init__(self, backend: Backend, manager: Any, session_id: str) -> None:
        self.key = store_key(backend.prefix, session_handle(session_id))
        self._redis, self._manager, self._id = backend.redis, manager, session_id

    async def attempts(self) -> dict[str, Callable[[], Any]]:
        """Return all verbs that do not end a session, on sessions as they are loaded now."""
        manager, verbs = self._manager, {}
        for name in ("save", "guarded", "rotate", "touch", "refresh"):
            verbs[name] = await manager.load(self._id)
        verbs["save"]["a"] = verbs["guarded"]["guarded"] = 2

        def change(found: Session) -> None:
            found["a"] = 3

        return {
            "load": lambda: manager.load(self._id),
            "update": lambda: manager.update(self._id, change),
            "save": lambda: manager.save(verbs["save"]),
            "save what is guarded": lambda: manager.save(verbs["guarded"]),
            "rotate": lambda: manager.rotate(verbs["rotate"]),
            "touch": lambda: manager.touch(verbs["touch"]),
            "refresh": lambda: manager.refresh(verbs["refresh"]),
        }

    async def is_left_alone(self, verb: Callable[[], Any], damaged: bytes) -> Exception | None:
        """Run a verb; return its error, once it is seen that nothing was written."""
        failed = None
        try:
            await verb()
        except SessionError as error:
            failed = error
        assert await self._redis.get(self.key) == damaged
        return failed


async def victim(backend: Backend) -> tuple[Victim, Any, Session]:
    manager: Any = backend.manager(merge=MERGE)
    session = await manager.load()
    session["a"], session["guarded"], session.principal = 1, 1, "user:1"
    await manager.save(session)
    for number in range(3):
        session["b"] = number
        await manager.save(session)
    # It notes with every load that a session was seen, if it can.
    eager = backend.manager(merge=MERGE, idle_timeout=0.001)
    return Victim(backend, eager, session.id), manager, session


@pytest.mark.parametrize("name", DAMAGE)
async def test_no_verb_writes_to_what_cannot_be_read(backend: Backend, name: str) -> None:
    target, manager, session = await victim(backend)
    attempts = await target.attempts()
    damaged = DAMAGE[name](await backend.redis.get(target.key))
    await backend.redis.set(target.key, damaged)
    for verb, attempt in attempts.items():
        error = await target.is_left_alone(attempt, damaged)
        is_a_mark = damaged[3:4] == Kind.MOVED and verb in ("load", "update")
        assert isinstance(error, InvalidSessionData) or (is_a_mark and error is None), verb
    listed = await manager.sessions_of("user:1")
    assert [one.is_unreadable for one in listed] == [True]
    assert await backend.redis.get(target.key) == damaged
    with suppress(InvalidSessionData):
        await manager.destroy(session.id)
    after = await backend.redis.get(target.key)
    assert after == damaged or after[:4] == damaged[:3] + Kind.DESTROYED, "what has our mark ends"


async def test_a_copy_that_was_changed_behind_the_base_is_not_appended_to(backend: Backend) -> None:
    """Compacted by somebody else, and damaged then: the base is not found any more."""
    target, *_ = await victim(backend)
    attempts = await target.attempts()
    stored = await backend.redis.get(target.key)
    other = blob([{"a": set_(9)}])[40:]
    damaged = stored[:40] + other + b"\0\0\0\xff" + bytes(30)
    await backend.redis.set(target.key, damaged)
    for verb in ("save", "save what is guarded", "rotate"):
        error = await target.is_left_alone(attempts[verb], damaged)
        assert isinstance(error, InvalidSessionData)


async def test_compaction_does_not_lose_ids_to_a_damaged_length(backend: Backend) -> None:
    """The frames that it would fold do not add up to the base."""
    target, manager, session = await victim(backend)
    other = await manager.load(session.id)
    stored = await backend.redis.get(target.key)
    second = 44 + int.from_bytes(stored[40:44], "big")
    length = int.from_bytes(stored[second : second + 4], "big")
    damaged = put(second, (length + 1).to_bytes(4, "big"))(stored)
    await backend.redis.set(target.key, damaged)
    other["big"] = "x" * 3000
    other.log.frames = 99  # so that it sends a snapshot
    assert other.log.outgrown
    with pytest.raises(InvalidSessionData):
        await manager.save(other)
    assert await backend.redis.get(target.key) == damaged


async def test_marks_that_name_each_other(backend: Backend) -> None:
    target, manager, session = await victim(backend)
    attempts = await target.attempts()
    handle = session_handle(session.id[:3] + "." + "z" * 32)
    mark = FORMAT + Kind.MOVED + session.incarnation
    await backend.redis.set(store_key(backend.prefix, handle), mark + session.handle.encode())
    await backend.redis.set(target.key, mark + handle.encode())
    for verb in ("save", "rotate", "touch", "refresh"):
        error = await target.is_left_alone(attempts[verb], mark + handle.encode())
        assert isinstance(error, SessionConflict), verb
    assert [one.is_unreadable for one in await manager.sessions_of("user:1")] == [True]
    with pytest.raises(SessionConflict):
        await manager.destroy(session)


async def test_a_value_longer_than_any_log_is_not_read(backend: Backend) -> None:
    if backend.name != "valkey9":
        pytest.skip("once is enough, for so much memory")
    target, *_ = await victim(backend)
    attempts = await target.attempts()
    await backend.redis.setrange(target.key, 72_000_000, b"x")
    size = await backend.redis.strlen(target.key)
    for verb in ("load", "save", "touch"):
        with pytest.raises(InvalidSessionData):
            await attempts[verb]()
        assert await backend.redis.strlen(target.key) == size, verb
    stats = await backend.redis.info("clients")
    assert stats["client_recent_max_output_buffer"] < 2**20, "nothing of it was sent"


@only_interpreted
def test_more_keys_than_a_commit_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    most = {str(number): b"\x01" for number in range(MAX_KEYS)}
    assert len(encode_frame(most)) > MAX_KEYS
    with pytest.raises(SessionError, match="at most 65,535 keys, not 65,536"):
        encode_frame(most | {"one more": b"\x01"})
    monkeypatch.setattr("asyncsession.blob.MAX_KEYS", 10)
    manager = SyncSessionManager(f"memory://{uuid.uuid4()}")
    session = manager.load()
    session.update((str(number), 0) for number in range(11))
    with pytest.raises(SessionError, match="at most 10 keys"):
        manager.save(session)
    assert session.is_new
    assert manager.load(session.id).is_new, "nothing was written"
    del session["0"]
    assert manager.save(session).version == 1


@pytest.mark.parametrize("name", ["a newer format", "a mark that names nothing"])
async def test_damage_after_a_lost_reply_leaves_the_outcome_open(
    backend: Backend, name: str
) -> None:
    """The first copy of the commit was done before the damage, and nobody can see that any more."""
    if backend.port is None:
        pytest.skip("it has no connections to lose")
    target, _, session = await victim(backend)
    requests = 100  # of those that matter none, until it is set to 0

    def decide(request: list[bytes]) -> Fault:
        nonlocal requests
        requests += is_script(request)
        if is_script(request) and requests == 1:
            return Fault.CUT
        if is_script(request) and requests == 2:
            with Redis.from_url(backend.url) as redis:
                redis.set(target.key, DAMAGE[name](redis.get(target.key)))
        return Fault.PASS

    async with FaultProxy(backend.port, decide) as proxy:
        manager: Any = backend.manager(f"redis://127.0.0.1:{proxy.port}")
        late = await manager.load(session.id)
        late["a"], requests = 2, 0
        with pytest.raises(CommitOutcomeUnknown):
            await manager.save(late)
        await manager.aclose()
