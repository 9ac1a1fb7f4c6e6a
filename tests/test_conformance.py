"""What a manager does, on every store alike."""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from decimal import Decimal
from typing import Any

import pytest
from support.backends import EVERYWHERE, Backend

from asyncsession import (
    InvalidSessionData,
    InvalidSessionValue,
    Session,
    SessionConflict,
    SessionError,
    SessionGone,
    SessionTooLarge,
    merge,
)
from asyncsession.ids import new_id, store_key

STORES = EVERYWHERE

EVERY_TYPE: dict[str, Any] = {
    "none": None,
    "bool": True,
    "small": -1,
    "big": -(2**200),
    "edge": 2**64,
    "float": 0.1,
    "text": "Grüße 🎈",
    "bytes": b"\x00\xff",
    "list": [1, [2, {"three": 3}]],
    "dict": {"a": {"b": []}, 7: "seven"},
    "set": {1, "two", (3).to_bytes(1, "big")},
    "frozenset": frozenset({1, 2}),
    "datetime": dt.datetime(2026, 3, 1, 12, 30, 15, 123456),
    "aware": dt.datetime(2026, 3, 1, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30))),
    "date": dt.date(2026, 2, 28),
    "time": dt.time(23, 59, 59, 999999),
    "timedelta": dt.timedelta(days=-3, microseconds=1),
    "decimal": Decimal("1.10"),
    "uuid": uuid.UUID(int=42),
}


async def stored(backend: Backend, **values: Any) -> Session:
    """Return a session that has been saved with these values."""
    session = await backend.manager().load()
    session.update(values)
    await backend.manager().save(session)
    return session


async def test_round_trip_of_every_type(backend: Backend) -> None:
    session = await stored(backend, **EVERY_TYPE, tuple=(1, 2))
    again = await backend.manager().load(session.id)
    assert dict(again) == EVERY_TYPE | {"tuple": [1, 2]}
    assert {k: type(v) for k, v in again.items() if k in EVERY_TYPE} == {
        k: type(v) for k, v in EVERY_TYPE.items()
    }


async def test_first_save_creates_and_later_ones_count_versions(backend: Backend) -> None:
    manager = backend.manager()
    session = await manager.load()
    assert session.is_new
    assert (session.version, session.created_at, session.expires_at) == (0, None, None)
    session["a"] = 1
    commit = await manager.save(session)
    assert (commit.version, commit.attempts) == (1, 1)
    assert not session.is_new
    assert session.expires_at is not None
    assert session.created_at is not None
    assert session.expires_at - session.created_at == dt.timedelta(days=14)
    session["a"] = 2
    assert (await manager.save(session)).version == 2
    again = await manager.load(session.id)
    assert (again.version, dict(again), again.is_new) == (2, {"a": 2}, False)


async def test_an_empty_new_session_is_never_written(backend: Backend) -> None:
    manager = backend.manager()
    session = await manager.load()
    commit = await manager.save(session)
    session["gone"] = 1
    del session["gone"]
    assert await manager.save(session) == commit
    assert (commit.version, commit.attempts) == (0, 0)
    assert await backend.keys() == []


async def test_an_emptied_session_is_saved(backend: Backend) -> None:
    """CVE-2023-20862: emptying was mistaken for nothing to save."""
    session = await stored(backend, user=1, cart=[1])
    session.clear()
    await backend.manager().save(session)
    again = await backend.manager().load(session.id)
    assert (dict(again), again.is_new) == ({}, False)


@pytest.mark.parametrize("bad", [None, "", "x", "abc." + "A" * 31, "abc." + "é" * 32, "a" * 5000])
async def test_malformed_ids_give_a_new_session(backend: Backend, bad: str | None) -> None:
    session = await backend.manager().load(bad)
    assert session.is_new
    assert session.id != bad


async def test_an_unknown_id_is_never_adopted(backend: Backend) -> None:
    manager, planted = backend.manager(), new_id()
    session = await manager.load(planted)
    session["a"] = 1
    await manager.save(session)
    assert session.id != planted
    assert (await manager.load(planted)).is_new


async def test_unknown_loads_store_nothing_ten_thousand_of_them(backend: Backend) -> None:
    each = 500 if backend.name in ("memory", "valkey9") else 50  # the others take their time
    manager = backend.manager()
    before = set(await backend.redis.keys())

    async def some(count: int) -> None:
        for number in range(count):
            await manager.load(new_id() if number % 2 else "")

    await asyncio.gather(*(some(each) for _ in range(20)))
    assert await backend.keys() == []
    assert set(await backend.redis.keys()) <= before


async def test_nested_changes_are_noticed(backend: Backend) -> None:
    session = await stored(backend, prefs={"theme": "light", "tabs": [1]}, seen={1})
    session["prefs"]["theme"] = "dark"
    session["prefs"]["tabs"].append(2)
    session["seen"].add(2)
    assert session.modified
    await backend.manager().save(session)
    assert not session.modified
    again = await backend.manager().load(session.id)
    assert dict(again) == {"prefs": {"theme": "dark", "tabs": [1, 2]}, "seen": {1, 2}}


async def test_saving_without_changes_sends_nothing(backend: Backend) -> None:
    session = await stored(backend, a=[1])
    assert session["a"] == [1]
    commit = await backend.manager().save(session)
    assert (commit.version, commit.attempts) == (1, 0)


async def test_after_save_the_session_shows_the_merged_state(backend: Backend) -> None:
    manager = backend.manager(merge={"views": merge.counter})
    first = await stored(backend, views=1, prefs={"a": 1}, gone=1)
    second = await manager.load(first.id)
    prefs = second["prefs"]
    first["views"] = 11
    first["prefs"]["b"] = 2
    first["new"] = True
    del first["gone"]
    await manager.save(first)
    second["views"] += 1
    prefs["c"] = 3
    commit = await manager.save(second)
    assert commit.attempts == 1
    assert commit.merged == ("prefs", "views")
    assert dict(second) == {"views": 12, "prefs": {"a": 1, "b": 2, "c": 3}, "new": True}
    assert second["prefs"] is prefs, "what was handed out stays the session's"
    prefs["d"] = 4
    await manager.save(second)
    assert (await manager.load(first.id))["prefs"] == {"a": 1, "b": 2, "c": 3, "d": 4}


async def test_last_write_wins_is_reported(backend: Backend) -> None:
    manager = backend.manager(merge={"draft": merge.last_write})
    first = await stored(backend, draft="", name="")
    second = await manager.load(first.id)
    first["draft"] = first["name"] = "theirs"
    second["draft"] = second["name"] = "ours"
    await manager.save(first)
    commit = await manager.save(second)
    assert commit.overwritten == ("draft", "name")
    assert (await manager.load(first.id))["draft"] == "ours"


async def test_a_deleted_dict_does_not_come_back_with_one_field(backend: Backend) -> None:
    manager = backend.manager()
    first = await stored(backend, address={"street": "x", "town": "y"})
    second = await manager.load(first.id)
    second["address"]["town"] = "z"
    del first["address"]
    await manager.save(first)
    commit = await manager.save(second)
    assert commit.dropped == ("address",)
    assert "address" not in second
    assert "address" not in await manager.load(first.id)


async def test_flash_messages_added_while_the_old_ones_are_popped(backend: Backend) -> None:
    """Whichever is committed first, and for sets as for lists."""
    manager = backend.manager(merge={"events": merge.append, "tags": merge.union})
    for popped_first in (True, False):
        reader = await stored(backend, flash=["old"], events=["old"], tags={"old"})
        writer = await manager.load(reader.id)
        for key in ("flash", "events", "tags"):
            reader.pop(key)
        writer["flash"].append("new")
        writer["events"].append("new")
        writer["tags"].add("new")
        for session in (reader, writer) if popped_first else (writer, reader):
            assert not (await manager.save(session)).overwritten
        found = await manager.load(reader.id)
        assert dict(found) == {"flash": ["new"], "events": ["new"], "tags": {"new"}}
        found.clear()
        await manager.save(found)
        assert dict(await manager.load(reader.id)) == {}


async def test_first_write_keeps_the_first(backend: Backend) -> None:
    manager = backend.manager(merge={"winner": merge.first_write})
    first = await stored(backend, other=0)
    second = await manager.load(first.id)
    first["winner"], second["winner"], second["other"] = "first", "second", 1
    await manager.save(first)
    commit = await manager.save(second)
    assert commit.dropped == ("winner",)
    assert second["winner"] == "first"
    assert dict(await manager.load(first.id)) == {"winner": "first", "other": 1}


async def test_reject_refuses_the_second(backend: Backend) -> None:
    manager = backend.manager(merge={"seat": merge.reject})
    first = await stored(backend, seat=None)
    second = await manager.load(first.id)
    first["seat"], second["seat"], second["note"] = "1A", "2B", "hello"
    await manager.save(first)
    with pytest.raises(SessionConflict) as caught:
        await manager.save(second)
    assert caught.value.keys == ("seat",)
    assert dict(await manager.load(first.id)) == {"seat": "1A"}
    assert second["note"] == "hello", "nothing is lost; the caller may load and try again"


async def test_guarded_policies_let_other_keys_pass(backend: Backend) -> None:
    manager = backend.manager(merge={"seat": merge.reject})
    first = await stored(backend, seat=None)
    second = await manager.load(first.id)
    first["other"], second["seat"] = 1, "2B"
    await manager.save(first)
    assert (await manager.save(second)).attempts == 1


async def test_custom_merge_sees_base_ours_and_theirs(backend: Backend) -> None:
    seen = []

    def longest(base: Any, ours: Any, theirs: Any) -> Any:
        seen.append((base, ours, theirs))
        return max(ours, theirs, key=len)

    manager = backend.manager(merge={"text": longest})
    first = await stored(backend, text="a")
    second = await manager.load(first.id)
    first["text"], second["text"] = "abcd", "abc"
    await manager.save(first)
    commit = await manager.save(second)
    assert seen == [("a", "abc", "abcd")]
    assert second["text"] == "abcd"
    assert commit.dropped == ("text",)


async def test_a_custom_merge_may_change_what_it_is_given(backend: Backend) -> None:
    def joined(_base: Any, ours: Any, theirs: Any) -> Any:
        theirs.update(ours)
        return theirs

    manager = backend.manager(merge={"d": joined})
    session = await manager.load()
    session["d"] = {}
    await manager.save(session)
    one, two = await manager.load(session.id), await manager.load(session.id)
    one["d"]["one"], two["d"]["two"] = 1, 2
    await manager.save(one)
    await manager.save(two)
    assert (await manager.load(session.id))["d"] == {"one": 1, "two": 2} == two["d"]


async def test_custom_merge_may_delete_and_may_refuse(backend: Backend) -> None:
    def refuse(base: Any, ours: Any, theirs: Any) -> Any:
        raise LookupError("not mergeable")

    manager = backend.manager(
        merge={"temp:*": lambda base, ours, theirs: merge.MISSING, "fixed": refuse}
    )
    first = await stored(backend, **{"temp:1": 0, "fixed": 0})
    second, third = await manager.load(first.id), await manager.load(first.id)
    first["temp:1"], second["temp:1"] = 1, 2
    await manager.save(first)
    await manager.save(second)
    assert "temp:1" not in second
    assert "temp:1" not in await manager.load(first.id)
    first["fixed"], third["fixed"], third["more"] = 1, 2, 3
    await manager.save(first)
    with pytest.raises(LookupError):
        await manager.save(third)
    assert dict(await manager.load(first.id)) == {"fixed": 1}


async def test_session_saves_on_a_clean_exit_only(backend: Backend) -> None:
    manager = backend.manager()
    async with manager.session() as session:
        session["a"] = 1
    with pytest.raises(ZeroDivisionError):
        async with manager.session(session.id) as other:
            other["a"] = 1 // 0
    async with manager.session(session.id) as last:
        assert last["a"] == 1
        await manager.destroy(last)
    assert (await manager.load(session.id)).is_new


async def test_update_is_serialisable(backend: Backend) -> None:
    manager = backend.manager()
    session = await stored(backend, balance=100, log=[])
    runs = 0

    async def withdraw(s: Session) -> None:
        nonlocal runs
        runs += 1
        balance = s["balance"]
        await asyncio.sleep(0)
        if balance >= 30:
            s["balance"] = balance - 30
            s["log"] = [*s["log"], balance]

    await asyncio.gather(*(manager.update(session.id, withdraw) for _ in range(8)))
    final = await manager.load(session.id)
    assert (final["balance"], final["log"]) == (10, [100, 70, 40])
    assert runs >= 8


async def test_update_guards_what_was_only_read_or_listed(backend: Backend) -> None:
    manager = backend.manager()
    session = await stored(backend, limit=1)
    for look in (lambda s: s.get("limit"), lambda s: "absent" in s, lambda s: len(s)):
        runs = 0

        async def change(s: Session, look: Any = look) -> None:
            nonlocal runs
            runs += 1
            look(s)
            if runs == 1:
                async with manager.session(session.id) as other:
                    other["limit"] = other["limit"] + 1
                    other["absent"] = other.get("absent", 0) + 1
            s["sum"] = runs

        done = await manager.update(session.id, change)
        assert (runs, done["sum"]) == (2, 2)


async def test_an_update_that_runs_out_of_something_is_no_success(backend: Backend) -> None:
    def change(session: Session) -> None:
        session["a"] = next(iter([]))

    with pytest.raises(RuntimeError, match="StopIteration"):
        await backend.manager().update(None, change)
    assert await backend.keys() == []


async def test_update_takes_plain_functions_and_new_sessions(backend: Backend) -> None:
    manager = backend.manager()
    session = await manager.update(None, lambda s: s.update(a=1))
    assert dict(await manager.load(session.id)) == {"a": 1}


async def test_destroyed_stays_destroyed(backend: Backend) -> None:
    manager = backend.manager()
    session = await stored(backend, a=1)
    slow, by_id = await manager.load(session.id), session.id
    await manager.destroy(session)
    assert session.is_destroyed
    assert dict(session) == {}
    slow["a"] = 2
    for late in (slow, session):
        late["b"] = 1
        with pytest.raises(SessionGone):
            await manager.save(late)
    with pytest.raises(SessionGone):
        await manager.touch(slow)
    with pytest.raises(SessionGone):
        await manager.rotate(slow)
    await manager.destroy(by_id)
    await manager.destroy(slow)
    assert (await manager.load(by_id)).is_new


async def test_destroy_by_id(backend: Backend) -> None:
    manager = backend.manager()
    session = await stored(backend, a=1)
    await manager.destroy(session.id)
    await manager.destroy(new_id())
    await manager.destroy("nonsense")
    session["a"] = 2
    with pytest.raises(SessionGone):
        await manager.save(session)
    assert len(await backend.keys()) == 1, "one tombstone, and nothing for ids that never were"


async def test_rotate_moves_changes_and_forwards_commits(backend: Backend) -> None:
    manager = backend.manager()
    session = await stored(backend, cart=["a"])
    old = session.id
    slow = await manager.load(old)
    session["user"] = 42
    commit = await manager.rotate(session)
    assert commit.version == 2
    assert session.id != old
    assert session.id[:4] == old[:4]
    slow["cart"].append("b")
    await manager.save(slow)
    assert slow.is_stale
    assert "user" not in slow, "whoever holds the old id is shown nothing of the successor"
    slow["cart"].append("c")
    await manager.save(slow)
    assert dict(await manager.load(session.id)) == {"cart": ["a", "b", "c"], "user": 42}
    planted = await manager.load(old)
    assert planted.is_new
    assert planted.is_stale
    assert planted.id != old


async def test_a_session_rotated_away_shows_its_own_changes_where_they_were_dropped(
    backend: Backend,
) -> None:
    """What was there in the successor is not its to know, and may have been folded away."""
    manager = backend.manager(merge={"views": merge.counter, "winner": merge.first_write})
    session = await stored(backend, form={"name": "", "at": {}})
    slow = await manager.load(session.id)
    session.update(views="many", winner="fast")
    del session["form"]["at"]
    await manager.rotate(session)
    slow.update(views=3, winner="slow")
    slow["form"]["name"] = "slow"
    slow["form"]["at"]["x"] = 1
    own = {"form": {"name": "slow", "at": {"x": 1}}, "views": 3, "winner": "slow"}
    assert (await manager.save(slow)).dropped == ("form", "views", "winner")
    assert slow.is_stale
    assert dict(slow) == own
    assert (await manager.save(slow)).attempts == 0, "they have been tried"
    assert dict(slow) == own
    found = await manager.load(session.id)
    assert dict(found) == {"form": {"name": "slow"}, "views": "many", "winner": "fast"}


async def test_rotate_of_a_new_session(backend: Backend) -> None:
    manager = backend.manager()
    session = await manager.load()
    first = session.id
    session["a"] = 1
    await manager.rotate(session)
    assert session.id != first
    assert (await manager.load(first)).is_new
    assert dict(await manager.load(session.id)) == {"a": 1}


async def test_of_two_rotations_one_wins(backend: Backend) -> None:
    manager = backend.manager()
    session = await stored(backend, cart=[])
    one, two = await manager.load(session.id), await manager.load(session.id)
    for number, twin in enumerate((one, two)):
        twin.principal = "user:42"
        twin["cart"].append(number)
        await manager.rotate(twin)
    assert (one.is_stale, two.is_stale) == (False, True)
    assert two.id == session.id
    assert dict(await manager.load(one.id)) == {"cart": [0, 1]}
    assert len(await manager.sessions_of("user:42")) == 1


async def test_a_login_never_lands_in_the_session_of_another_principal(backend: Backend) -> None:
    """Session fixation by racing: the attacker rotates while the victim's login is under way."""
    manager = backend.manager()
    planted = await stored(backend, cart=[])
    victim = await manager.load(planted.id)
    planted.principal = "user:attacker"
    await manager.rotate(planted)
    victim.principal = "user:victim"
    victim["secret"] = 1
    for attempt in (manager.rotate, manager.save):
        with pytest.raises(SessionConflict) as caught:
            await attempt(victim)
        assert caught.value.keys == ("principal",)
    assert "secret" not in await manager.load(planted.id)


async def test_the_principal_is_merged_by_no_policy_of_the_application(backend: Backend) -> None:
    manager = backend.manager(merge={"*": merge.maximum}, default_merge=merge.maximum)
    one = await stored(backend, a=1)
    two = await manager.load(one.id)
    one.principal, two.principal = "user:99", "user:10"
    await manager.save(one)
    commit = await manager.save(two)
    assert (two.principal, commit.overwritten) == ("user:10", ("principal",))
    assert len(await manager.sessions_of("user:10")) == 1


async def test_a_change_made_during_a_save_and_taken_back_leaves_nothing(
    real_backend: Backend,
) -> None:
    manager = real_backend.manager(merge={"seat": merge.reject})
    session = await stored(real_backend, seat=None, n=0)
    async with manager.session(session.id) as other:
        other["seat"] = "1A"
    session["n"] = 1
    saving = asyncio.create_task(manager.save(session))
    await asyncio.sleep(0)
    session["seat"] = "2B"
    await saving
    session["seat"] = "1A"
    await manager.save(session)
    session["seat"] = "3C"
    await manager.save(session)
    assert (await manager.load(session.id))["seat"] == "3C"


async def test_a_stale_session_never_becomes_another_principal(backend: Backend) -> None:
    """Nor later on, when it knows the way to its successor."""
    manager = backend.manager()
    planted = await stored(backend, cart=[])
    victim = await manager.load(planted.id)
    await manager.rotate(planted)
    victim["cart"].append("x")
    await manager.save(victim)
    assert victim.is_stale
    victim.principal = "user:victim"
    for attempt in (manager.save, manager.rotate):
        with pytest.raises(SessionConflict):
            await attempt(victim)
    found = await manager.load(planted.id)
    assert (found.principal, found["cart"]) == (None, ["x"])


async def test_an_update_does_not_run_on_a_successor(backend: Backend) -> None:
    manager = backend.manager()
    session = await stored(backend, n=1)
    seen = []

    async def change(s: Session) -> None:
        seen.append(dict(s))
        if len(seen) == 1:
            winner = await manager.load(session.id)
            winner["secret"] = winner["n"] = 2
            await manager.rotate(winner)
        s["n"] += 1

    with pytest.raises(SessionConflict):
        await manager.update(session.id, change)
    assert seen == [{"n": 1}]


async def test_changes_made_during_a_save_are_not_lost(real_backend: Backend) -> None:
    manager = real_backend.manager(merge={"n": merge.counter, "seat": merge.reject})
    session = await stored(real_backend, n=0, seat=None, tags=[])
    other = await manager.load(session.id)
    other["n"], other["seat"] = 10, "1A"
    other["tags"].append("theirs")
    await manager.save(other)
    session["tags"].append("first")
    saving = asyncio.create_task(manager.save(session))
    await asyncio.sleep(0)
    assert session.is_saving
    session["n"] += 1
    session["tags"].append("second")
    session["seat"] = "2B"
    await saving
    with pytest.raises(SessionConflict) as caught:
        await manager.save(session)
    assert caught.value.keys == ("seat",)
    del session["seat"]
    session["seat"] = "1A"
    await manager.save(session)
    found = await manager.load(session.id)
    assert (found["n"], found["seat"]) == (11, "1A")
    assert sorted(found["tags"]) == ["first", "second", "theirs"]


async def test_destroy_follows_a_rotation(backend: Backend) -> None:
    manager = backend.manager()
    session = await stored(backend, a=1)
    other_tab = await manager.load(session.id)
    await manager.rotate(session)
    await manager.destroy(other_tab)
    assert (await manager.load(session.id)).is_new


async def test_sessions_of_and_destroy_all(backend: Backend) -> None:
    manager = backend.manager()
    phone, laptop, other = [await manager.load() for _ in range(3)]
    for name, session in (("phone", phone), ("laptop", laptop), ("other", other)):
        session["device"] = name
        session.principal = "user:1" if session is other else "user:42"
        await manager.save(session)
    await manager.rotate(phone)
    found = await manager.sessions_of("user:42")
    assert sorted(s["device"] for s in found) == ["laptop", "phone"]
    assert all(s.id == "" and s.principal == "user:42" for s in found)
    slow = await manager.load(laptop.id)
    assert await manager.destroy_all("user:42", keep=phone) == 1
    slow["late"] = 1
    with pytest.raises(SessionGone):
        await manager.save(slow)
    assert [s["device"] for s in await manager.sessions_of("user:42")] == ["phone"]
    assert [s["device"] for s in await manager.sessions_of("user:1")] == ["other"]
    assert await manager.destroy_all("user:42") == 1
    assert await manager.sessions_of("user:42") == []
    assert (await manager.load(other.id))["device"] == "other"


async def test_the_index_forgets_who_logged_out_or_became_someone_else(backend: Backend) -> None:
    manager = backend.manager()
    sessions = [await manager.load() for _ in range(3)]
    for session in sessions:
        session.principal = "user:42"
        await manager.save(session)
    await manager.destroy(sessions[0])
    sessions[1].principal = None
    await manager.save(sessions[1])
    assert len(await manager.sessions_of("user:42")) == 1
    index = [key for key in await backend.keys() if b":of:" in key]
    assert await backend.redis.zcard(index[0]) == 1
    assert await manager.destroy_all("user:42") == 1
    assert not (await manager.load(sessions[1].id)).is_new


async def test_a_listed_session_can_be_ended_and_changed(backend: Backend) -> None:
    manager = backend.manager()
    session = await manager.load()
    session.principal = "user:42"
    await manager.save(session)
    (listed,) = await manager.sessions_of("user:42")
    listed["note"] = "seen"
    await manager.save(listed)
    assert (await manager.load(session.id))["note"] == "seen"
    await manager.destroy(listed)
    assert (await manager.load(session.id)).is_new


async def test_idle_timeout(backend: Backend) -> None:
    manager = backend.manager(idle_timeout=dt.timedelta(milliseconds=300))
    session = await manager.load()
    session["a"] = 1
    await manager.save(session)
    key = store_key(backend.prefix, session.handle)
    assert -1 != await backend.redis.pttl(key) <= 300  # -1: for ever; -2: over already
    async with asyncio.timeout(5):
        while await backend.redis.exists(key):  # noqa: ASYNC110  the server tells nobody
            await asyncio.sleep(0.02)
    session["a"] = 2
    with pytest.raises(SessionGone):
        await manager.save(session)
    assert (await manager.load(session.id)).is_new
    assert await backend.keys() == []


async def test_loading_puts_off_the_idle_timeout_and_never_shortens_it(backend: Backend) -> None:
    long, short = backend.manager(idle_timeout=1000), backend.manager(idle_timeout=10)
    session = await short.load()
    session["a"] = 1
    await short.save(session)
    (key,) = await backend.keys()
    await long.load(session.id)
    assert await backend.redis.pttl(key) > 900_000
    await short.load(session.id)
    await short.touch(await short.load(session.id))
    assert await backend.redis.pttl(key) > 900_000


async def test_the_absolute_timeout_caps_the_idle_one_spring_session_922(backend: Backend) -> None:
    manager = backend.manager(idle_timeout=3600, absolute_timeout=60)
    session = await manager.load()
    session["a"] = 1
    await manager.save(session)
    (key,) = await backend.keys()
    for act in (manager.load(session.id), manager.touch(session)):
        await act
        assert await backend.redis.pttl(key) <= 60_000
    session["a"] = 2
    await manager.save(session)
    assert await backend.redis.pttl(key) <= 60_000


async def test_no_use_puts_off_the_absolute_timeout(backend: Backend) -> None:
    manager = backend.manager(idle_timeout=60, absolute_timeout=60)
    session = await manager.load()
    session["n"] = 0
    await manager.save(session)
    (key,) = await backend.keys()
    blob = await backend.redis.get(key)
    earlier = int.from_bytes(blob[18:24], "big") - 30_000  # as if half of it had passed
    await backend.redis.setrange(key, 18, earlier.to_bytes(6, "big"))
    session = await manager.load(session.id)
    ends = session.expires_at
    for use in (manager.save, manager.touch, manager.rotate):
        session["n"] += 1
        await use(session)
        again = await manager.load(session.id)
        assert again.expires_at == ends
        (live,) = [key for key in await backend.keys() if again.handle.encode() in key]
        assert await backend.redis.pttl(live) <= 30_000


async def test_too_large(backend: Backend) -> None:
    manager = backend.manager(max_bytes=1000)
    session = await manager.load()
    session["a"], session["b"] = "x" * 500, "y" * 600
    with pytest.raises(SessionTooLarge) as caught:
        await manager.save(session)
    assert caught.value.limit == 1000
    assert caught.value.bytes > 1000
    assert [key for key, _ in caught.value.largest] == ["b", "a"]
    assert await backend.keys() == []
    session["b"] = ""
    await manager.save(session)
    for number in range(40):  # what is replaced makes room for what replaces it
        session["a"] = str(number % 10) * 500
        await manager.save(session)
    assert len(await backend.redis.get((await backend.keys())[0])) < 3000
    session["a"] = "z" * 2000
    with pytest.raises(SessionTooLarge):
        await manager.save(session)
    session["a"] = "z"
    await manager.save(session)
    assert dict(await manager.load(session.id)) == {"a": "z", "b": ""}


async def test_a_session_over_a_lowered_limit_can_shrink(backend: Backend) -> None:
    session = await stored(backend, a="x" * 3000, b="y" * 3000)
    manager = backend.manager(max_bytes=1024)
    shrunk = await manager.load(session.id)
    del shrunk["a"]
    await manager.save(shrunk)
    assert dict(await manager.load(session.id)) == {"b": "y" * 3000}


async def test_invalid_values_name_key_and_type(backend: Backend) -> None:
    manager = backend.manager()
    session = await stored(backend, ok=1)
    session["ok"], session["bad"] = 2, {"deep": [object()]}
    with pytest.raises(InvalidSessionValue) as caught:
        await manager.save(session)
    assert (caught.value.key, caught.value.type) == ("bad", object)
    assert isinstance(caught.value, TypeError)
    assert dict(await manager.load(session.id)) == {"ok": 1}


@pytest.mark.parametrize("junk", [b"", b"hello", b"aS\x02L" + b"x" * 40, b"\x80\x04pickle", b"aS"])
async def test_what_cannot_be_read_is_left_as_it_is(backend: Backend, junk: bytes) -> None:
    manager = backend.manager()
    session = await stored(backend, a=1)
    key = store_key(backend.prefix, session.handle)
    await backend.redis.set(key, junk)
    with pytest.raises(InvalidSessionData):
        await manager.load(session.id)
    session["a"] = 2
    with pytest.raises(InvalidSessionData):
        await manager.save(session)
    assert await backend.redis.get(key) == junk


async def test_one_session_object_is_saved_by_one_task_at_a_time(real_backend: Backend) -> None:
    manager = real_backend.manager()
    session = await manager.load()
    session["a"] = 1
    results = await asyncio.gather(
        manager.save(session), manager.save(session), return_exceptions=True
    )
    assert [type(result).__name__ for result in results] == ["Commit", "SessionError"]
    assert isinstance(results[1], SessionError)


async def test_a_long_history_is_compacted(backend: Backend) -> None:
    manager = backend.manager(merge={"n": merge.counter})
    session = await stored(backend, n=0, text="x" * 200)
    for _ in range(200):
        session["n"] += 1
        await manager.save(session)
    again = await manager.load(session.id)
    assert (again["n"], again.version) == (200, 201)
    assert again.log is not None
    assert again.log.frames <= 34
    assert again.log.length < 4000
