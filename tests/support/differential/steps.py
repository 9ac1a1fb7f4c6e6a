"""What the steps of a schedule do in one world, and what can be seen of it there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple

from asyncsession import Commit, Session, SessionConflict, SessionError
from support.differential.changes import GUARDED, Changes, apply, comparable
from support.differential.worlds import MAX_BYTES, Abandoned, Fate, Held, Plan, World

__all__ = ["STEPS", "Meanwhile", "Step", "begin", "end", "told"]

_DONE_UNANSWERED = (Fate.UNANSWERED, Fate.LEFT, Fate.CUT)
_MANY = 4  # commits: enough for a compaction, since they are large


class Meanwhile(NamedTuple):
    """What else happens to a session while a call about it is under way.

    Attributes:
        what: "commit", "many", "rotate" and "destroy" are others' doing; "back" brings back what
            was stored at some time.
        who: the number of the others' manager; 3 for the stranger.
        is_late: it happens after the call was done, and not before.
        todo: what others change.
        own: what the request itself changes, in its session.
    """

    what: str = ""
    who: int = 3
    is_late: bool = False
    todo: Changes = ()
    own: Changes = ()


class Step(NamedTuple):
    """One step. Each uses what it needs of this; see the functions with the names in `STEPS`.

    Attributes:
        name: what is done.
        which: number of the session or of the id; of as many as there are, counted from the latest.
        manager: number of the manager.
        todo: what is changed.
        fate: what becomes of the first call.
        beside: what else happens meanwhile.
        principal: a name, or none.
        look: whether values are looked at, which unpacks them.
        other: which of two ways to do it.
    """

    name: str
    which: int = 0
    manager: int = 0
    todo: Changes = ()
    fate: Fate = Fate.ANSWERED
    beside: Meanwhile | None = None
    principal: str | None = None
    look: bool = False
    other: bool = False

    def __repr__(self) -> str:
        defaults = self._field_defaults
        given = {key: it for key, it in self._asdict().items() if it != defaults.get(key)}
        return f"Step({', '.join(f'{key}={it!r}' for key, it in given.items())})"


async def told(world: World, attempt: Awaitable[Any]) -> Any:
    """Return what callers are told, and what could be seen meanwhile."""
    outcome: Any
    try:
        outcome = await attempt
    except SessionConflict as error:
        outcome = "SessionConflict", error.keys
    except (SessionError, Abandoned) as error:
        outcome = type(error).__name__
    for way in world.ways:
        way.plan = None  # the call that it was for was not made
    seen, world.seen = world.seen, []
    return outcome, seen


async def begin(world: World) -> Any:
    """Make the first session."""
    session = await world.managers[0].load()
    session["begun"] = True
    session.update({f"fill:{part}": "x" * (world.size // 3) for part in range(3) if world.size})
    commit = await world.managers[0].save(session)
    world.hold(0, session)
    return _became(commit), await _stored(world, session.id)


async def end(world: World) -> Any:
    """Return all that is there in the end, to whoever looks."""
    held = [_shown(world, one.session, look=True) for one in world.held]
    newcomer, found = world.fresh(), []
    for session_id in world.ids:
        hours = round(await world.redis.pttl(world.key(session_id)) / 3_600_000)
        stored = await _stored(world, session_id)
        for manager in (newcomer, newcomer, *world.managers):
            session = await manager.load(session_id)
            assert _content(session) == stored, "a manager reads what is not stored"
        found.append((hours, stored))
    return held, found


async def new(world: World, step: Step) -> Any:
    session = await world.managers[step.manager].load()
    world.hold(step.manager, session)
    return await save(world, step._replace(which=0))


async def load(world: World, step: Step) -> Any:
    session_id = _id(world, step)
    world.ways[step.manager].plan = Plan("load", step.fate)
    session = await world.managers[step.manager].load(session_id)
    world.hold(step.manager, session)
    expected = await world.reader.load(session_id)
    for name in ("is_new", "is_stale", "version", "created_at", "expires_at", "last_seen"):
        assert getattr(session, name) == getattr(expected, name), name
    if step.other:  # which others must not see
        for value in session.values():
            if isinstance(value, (dict, set)):
                value.clear()
    return _content(expected), _shown(world, session, step.look)


async def change(world: World, step: Step) -> Any:
    session = _held(world, step).session
    apply(session, world.keys, step.todo)
    return _shown(world, session, step.look)


async def save(world: World, step: Step) -> Any:
    return await _commit(world, step, "save")


async def save_nothing(world: World, step: Step) -> Any:
    return await save(world, step._replace(todo=()))


async def load_and_save(world: World, step: Step) -> Any:
    await load(world, step._replace(fate=Fate.ANSWERED, look=False, other=False))
    return await save(world, step._replace(which=0))


async def save_too_much(world: World, step: Step) -> Any:
    session = _held(world, step).session
    before = session.get("text", "")
    session["text"] = "x" * (MAX_BYTES + 1)
    try:
        return await save(world, step._replace(todo=(), beside=None, look=False))
    finally:
        session["text"] = before


async def rotate(world: World, step: Step) -> Any:
    return await _commit(world, step, "rotate")


async def log_in(world: World, step: Step) -> Any:
    _held(world, step).session.principal = step.principal
    return await _commit(world, step, "rotate" if step.other else "save")


async def refresh(world: World, step: Step) -> Any:
    held = _held(world, step)
    apply(held.session, world.keys, step.todo)
    world.ways[held.manager].plan = _plan(world, held, "load", step)
    try:
        await world.managers[held.manager].refresh(held.session)
    finally:
        world.seen += [_shown(world, held.session, step.look)]


async def touch(world: World, step: Step) -> Any:
    held = _held(world, step)
    await world.managers[held.manager].touch(held.session)
    return _shown(world, held.session, step.look), await _stored(world, held.session.id)


async def update(world: World, step: Step) -> Any:
    runs = 0

    async def change(session: Session) -> None:
        nonlocal runs
        runs += 1
        apply(session, world.keys, step.todo)
        if step.other:
            list(session)  # which guards all keys
        if step.beside is not None and runs == 1:
            await _happen(world, Held(step.manager, session), step.beside)

    world.ways[step.manager].plan = Plan("commit", step.fate)
    session = await world.managers[step.manager].update(_id(world, step), change)
    world.hold(step.manager, session)
    return runs, _shown(world, session, step.look), await _stored(world, session.id)


async def destroy(world: World, step: Step) -> Any:
    if step.other:
        await world.managers[step.manager].destroy(session_id := _id(world, step))
        return await _stored(world, session_id)
    held = _held(world, step)
    await world.managers[held.manager].destroy(held.session)
    return _shown(world, held.session, step.look), await _stored(world, held.session.id)


async def list_sessions(world: World, step: Step) -> Any:
    listed = await world.managers[step.manager].sessions_of(step.principal or "user:1")
    return sorted((repr(one.principal), one.version) for one in listed)


async def destroy_all(world: World, step: Step) -> Any:
    keep = _held(world, step).session if step.other else None
    return await world.managers[step.manager].destroy_all(step.principal or "user:1", keep=keep)


async def many_commits(world: World, step: Step) -> Any:
    await _many(world, _id(world, step))
    return await _stored(world, _id(world, step))


async def copy(world: World, step: Step) -> Any:
    await world.copy()


async def bring_back(world: World, step: Step) -> Any:
    """As a failover does that lost writes, or a backup that is restored."""
    session_id = _id(world, step)
    await _bring_back(world, step.manager, None if step.other else session_id)
    return await _stored(world, session_id)


STEPS: dict[str, tuple[int, Callable[[World, Step], Awaitable[Any]]]] = {
    "new": (2, new),
    "load": (16, load),
    "change": (3, change),
    "save": (24, save),
    "save_nothing": (3, save_nothing),
    "load_and_save": (10, load_and_save),
    "save_too_much": (1, save_too_much),
    "rotate": (4, rotate),
    "log_in": (4, log_in),
    "refresh": (4, refresh),
    "touch": (3, touch),
    "update": (6, update),
    "destroy": (1, destroy),
    "list_sessions": (1, list_sessions),
    "destroy_all": (1, destroy_all),
    "many_commits": (2, many_commits),
    "copy": (3, copy),
    "bring_back": (3, bring_back),
}
"""What can be done, and how often of all of them."""


def _held(world: World, step: Step) -> Held:
    return world.held[-1 - step.which % len(world.held)]


def _id(world: World, step: Step) -> str:
    return world.ids[-1 - step.which % len(world.ids)]


def _became(commit: Commit, *, is_sure: bool = True) -> Any:
    """Return what became of a commit. How often it was sent may depend on what was remembered.

    What it met, too, where its answer was lost, and others have folded it away since.
    """
    if not is_sure:
        return commit.version, commit.attempts > 0
    return commit._replace(attempts=min(commit.attempts, 1))


def _shown(world: World, session: Session, look: bool) -> Any:
    """Return what a session shows; its values only on a look, since that unpacks them."""
    world.note(session)
    name = world.ids.index(session.id) if session.id in world.ids else None
    is_what = (session.is_new, session.is_stale, session.is_destroyed, session.modified)
    values = (session.principal, comparable(dict(session))) if look else None
    return {"id": name, "version": session.version, "is": is_what, "values": values}


def _content(session: Session) -> Any:
    found = (session.is_new, session.is_stale, session.version, session.principal)
    return *found, comparable(dict(session))


async def _stored(world: World, session_id: str) -> Any:
    """Return what a process without memory reads."""
    return _content(await world.reader.load(session_id))


async def _commit(world: World, step: Step, verb: str) -> Any:
    held = _held(world, step)
    apply(held.session, world.keys, step.todo)
    world.ways[held.manager].plan = _plan(world, held, "commit", step)
    session_id, session = held.session.id, held.session
    is_sure = step.fate not in _DONE_UNANSWERED and session.unanswered is None
    try:
        commit = await getattr(world.managers[held.manager], verb)(session)
        is_alone = step.beside is None or not (step.beside.is_late or step.beside.own)
        if commit.attempts and is_alone and not session.is_stale:
            if step.look:
                stored = await _stored(world, session.id)
                assert _content(session) == stored, "it does not show what is stored"
            if step.other:
                again = await world.managers[held.manager].save(session)
                assert again == (commit.version, 0, (), (), ()), "not all was saved"
        return _became(commit, is_sure=is_sure)
    finally:
        world.seen += [_shown(world, held.session, step.look), await _stored(world, session_id)]


def _plan(world: World, held: Held, script: str, step: Step) -> Plan:
    if step.beside is None:
        return Plan(script, step.fate)
    happen = partial(_happen, world, held, step.beside)
    if step.beside.is_late:
        return Plan(script, step.fate, after=happen)
    return Plan(script, step.fate, before=happen)


async def _happen(world: World, held: Held, beside: Meanwhile) -> None:
    """Have the request itself change its session, and others do something to it."""
    apply(held.session, world.keys, beside.own)
    # What waits for its turn behind a call of the same process would wait until it times out.
    is_ours = beside.who == held.manager
    keys = [key for key in world.keys if not (is_ours and key in GUARDED)] or ["note"]
    other = [*world.managers, world.stranger][beside.who]
    try:
        match beside.what:
            case "commit" | "rotate":
                session = await other.load(held.session.id)
                if not session.is_new:
                    apply(session, keys, beside.todo)
                    await (other.save if beside.what == "commit" else other.rotate)(session)
                    world.seen += [_shown(world, session, look=True)]
            case "many":
                await _many(world, held.session.id)
            case "destroy":
                await other.destroy(held.session.id)
            case "back":
                await _bring_back(world, 0, held.session.id)
    except SessionError as error:
        world.seen += [type(error).__name__]


async def _many(world: World, session_id: str) -> None:
    session = await world.stranger.load(session_id)
    if not session.is_new:
        for number in range(_MANY):
            session["note"] = str(number) * (500 + world.size // 2)
            await world.stranger.save(session)


async def _bring_back(world: World, copy: int, session_id: str | None) -> None:
    if world.copies:
        keys = None if session_id is None else [world.key(session_id)]
        await world.bring_back(-1 - copy % len(world.copies), keys)
