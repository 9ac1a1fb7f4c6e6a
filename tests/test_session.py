"""The session: a dict that knows what has changed in it, and takes in what others did."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.logs import CREATED, DEADLINE, SESSION_KEYS, SESSION_POLICIES, Store, small_values
from support.strategies import image, items, stored

from asyncsession.errors import InvalidSessionValue
from asyncsession.ids import is_session_id, session_handle
from asyncsession.operations import MISSING
from asyncsession.session import PRINCIPAL, Session


class AgainstDict(RuleBasedStateMachine):
    """Whatever is done to a session and to a dict, they hold the same, before and after saving."""

    @initialize(state=st.dictionaries(SESSION_KEYS, small_values))
    def start(self, state: dict[str, Any]) -> None:
        self.store = Store(**state)
        self.session = self.store.load()
        self.model = self.store.state()

    @rule(key=SESSION_KEYS, value=small_values)
    def put(self, key: str, value: Any) -> None:
        self.session[key] = value
        self.model[key] = stored(value)

    @rule(key=SESSION_KEYS)
    def get(self, key: str) -> None:
        assert image(self.session.get(key, MISSING)) == image(self.model.get(key, MISSING))
        assert (key in self.session) == (key in self.model)

    @rule(key=SESSION_KEYS)
    def delete(self, key: str) -> None:
        if key in self.model:
            del self.session[key], self.model[key]
        else:
            with pytest.raises(KeyError):
                del self.session[key]
            with pytest.raises(KeyError):
                self.session[key]

    @rule(key=SESSION_KEYS, default=small_values)
    def pop(self, key: str, default: Any) -> None:
        assert image(self.session.pop(key, default)) == image(self.model.pop(key, default))

    @rule()
    def popitem(self) -> None:
        if self.model:
            key, value = self.session.popitem()
            assert image(self.model.pop(key)) == image(value)
        else:
            with pytest.raises(KeyError):
                self.session.popitem()

    @rule(key=SESSION_KEYS, default=small_values)
    def setdefault(self, key: str, default: Any) -> None:
        value = self.session.setdefault(key, default)
        assert value is self.session[key]
        assert image(value) == image(self.model.setdefault(key, stored(default)))

    @rule(state=st.dictionaries(SESSION_KEYS, small_values, max_size=2))
    def update(self, state: dict[str, Any]) -> None:
        self.session.update(state)
        self.model.update({key: stored(value) for key, value in state.items()})

    @rule()
    def clear(self) -> None:
        self.session.clear()
        self.model.clear()

    @rule(key=SESSION_KEYS, item=items)
    def change_in_place(self, key: str, item: Any) -> None:
        for holder in (self.session, self.model):
            value: Any = holder.get(key)
            if isinstance(value, list):
                value.append(stored(item))
            elif isinstance(value, dict):
                value["new"] = stored(item)
            elif isinstance(value, set):
                value.symmetric_difference_update({1, 2})

    @rule(key=SESSION_KEYS)
    def change_in_place_and_back(self, key: str) -> None:
        before, value = self.session.modified, self.session.get(key)
        if isinstance(value, list):
            value.append(1)
            value.pop()
        assert self.session.modified == before

    @rule(again=st.booleans())
    def save(self, *, again: bool) -> None:
        self.store.save(self.session)
        assert not self.session.modified
        assert image(self.store.state()) == image(self.model)
        assert self.session.version == self.store.commits
        if again:
            self.session = self.store.load()

    @rule()
    def look_at_all(self) -> None:
        assert image(dict(self.session.items())) == image(self.model)

    @invariant()
    def same_keys(self) -> None:
        if hasattr(self, "session"):
            assert len(self.session) == len(self.model)
            assert bool(self.session) == bool(self.model)
            assert set(self.session) == set(self.model) == set(self.session.keys())


AgainstDict.TestCase.settings = settings(max_examples=40, stateful_step_count=20)
TestAgainstDict = AgainstDict.TestCase


@pytest.mark.parametrize("key", [1, None, b"a", ("a",), 1.5])
def test_keys_are_strings(key: Any) -> None:
    session = Store(a=1).load()
    with pytest.raises(InvalidSessionValue, match="session keys are strings") as caught:
        session[key] = 1
    with pytest.raises(KeyError):
        session[key]
    with pytest.raises(KeyError):
        del session[key]
    assert key not in session
    assert session.get(key) is None
    assert (caught.value.key, caught.value.type) == (key, type(key))
    assert all(isinstance(guard, str) for guard in session.guards() or ())


@pytest.mark.parametrize("key", [PRINCIPAL, "\0", "\0anything"])
def test_reserved_keys_are_not_the_application_s(key: str) -> None:
    session = Store(**{key: "user:1"}).load()
    with pytest.raises(InvalidSessionValue, match="NUL"):
        session[key] = 1
    with pytest.raises(KeyError):
        session[key]
    with pytest.raises(KeyError):
        del session[key]
    assert key not in session
    assert session.pop(key, None) is None
    assert list(session) == []
    assert not session
    session.clear()
    assert not session.modified


def test_keys_are_text() -> None:
    """Lone surrogates have no bytes: the commit would fail, and not say which key it was."""
    session = Session()
    with pytest.raises(InvalidSessionValue, match="surrogates"):
        session["\ud800"] = 1
    session["ключ \N{COOKIE} \0"] = 1
    assert set(session.changes(SESSION_POLICIES)) == {"ключ \N{COOKIE} \0"}


@pytest.mark.parametrize("value", [object(), [{"x": object()}], {(1, 2)}, {"x": 1j}])
def test_what_cannot_be_kept_is_told_at_save(value: Any) -> None:
    session = Store(a=1).load()
    session["bad"] = value
    assert session.modified
    with pytest.raises(InvalidSessionValue, match="'bad'"):
        session.changes(SESSION_POLICIES)
    del session["bad"]
    assert not session.modified


def test_reading_changes_nothing() -> None:
    session = Store(a={1: {"x": [(1, 2)]}}, b={"aa", "b"}, c=frozenset({1, "a"})).load()
    session["a"][1]["x"][0]
    dict(session)
    assert not session.modified
    assert session.changes(SESSION_POLICIES) == {}
    session["a"][1]["x"][0].append(3)
    assert session.modified
    assert set(session.changes(SESSION_POLICIES)) == {"a"}
    session["a"][1]["x"][0].pop()
    assert not session.modified


def test_the_same_value_again_is_no_change_and_another_type_is() -> None:
    session = Store(a=1, b=[1], c=0.0).load()
    session.update(a=1, b=(1,), c=0.0)
    assert not session.modified
    for key, value in (("a", True), ("a", 1.0), ("b", [True]), ("c", -0.0)):
        session = Store(a=1, b=[1], c=0.0).load()
        session[key] = value
        assert session.modified
        assert set(session.changes(SESSION_POLICIES)) == {key}


def test_a_session_equals_the_mapping_it_holds() -> None:
    assert Store(a=[1]).load() == {"a": [1]}
    assert Store(a=[1]).load() != {"a": [2]}
    assert Session() == {}


def test_new_and_stored() -> None:
    session = Session()
    assert session.is_new
    assert is_session_id(session.id)
    assert session.handle == session_handle(session.id)
    assert (session.version, session.created_at, session.expires_at) == (0, None, None)
    assert len(session.incarnation) == 8
    assert session.incarnation != Session().incarnation
    session = Store(a=1).load()
    assert not session.is_new
    assert session.version == 1
    assert session.created_at == datetime.fromtimestamp(CREATED / 1000, UTC)
    assert session.expires_at == datetime.fromtimestamp(DEADLINE / 1000, UTC)
    assert session.was_sent
    session.end()
    assert session.is_destroyed
    assert dict(session) == {}
    assert session.principal is None


def test_repr_tells_no_secrets() -> None:
    for session in (Session(), Store(token="hunter2").load()):
        session["password"], session.principal = "swordfish", "user:42"
        text = repr(session) + str(session)
        secrets = ("hunter2", "swordfish", "password", "token", "user:42", session.handle)
        assert not any(secret in text for secret in secrets)
        assert not session.id or session.id not in text
    assert repr(Session()) == "<Session new>"
    assert repr(session) == "<Session version 1>"


def test_principal() -> None:
    def three(session: Session) -> tuple[str | None, ...]:
        return session.principal, session.held_principal, session.stored_principal

    store = Store(a=1)
    session = store.load()
    assert three(session) == (None, None, None)
    session.principal = "user:1"
    assert three(session) == ("user:1", "user:1", None)
    assert "a" in session
    assert list(session) == ["a"]
    session.clear()
    assert store.save(session) == {PRINCIPAL, "a"}
    session = store.load()
    assert three(session) == ("user:1", "user:1", "user:1")
    assert len(session) == 0
    session.principal = None
    assert three(session) == (None, None, "user:1")
    store.save(session)
    assert three(store.load()) == (None, None, None)
    for junk in ("", 1, b"user", ["user"]):
        with pytest.raises(InvalidSessionValue, match="principal"):
            session.principal = junk  # type: ignore[assignment]


def touch_nothing(session: Session) -> None:
    assert (session.is_new, session.version, session.modified) == (False, 1, False)
    assert (session.held_principal, session.stored_principal) == (None, None)
    repr(session)


@pytest.mark.parametrize(
    ("use", "guards"),
    [
        (touch_nothing, set()),
        (lambda session: session["a"], {"a"}),
        (lambda session: session.get("no"), {"no"}),
        (lambda session: "no" in session, {"no"}),
        (lambda session: session.update(new=1), {"new"}),
        (lambda session: session.pop("a"), {"a"}),
        (lambda session: session.setdefault("no", 1), {"no"}),
        (lambda session: session.principal, {PRINCIPAL}),
        (lambda session: setattr(session, "principal", "user:1"), {PRINCIPAL}),
        (list, None),
        (len, None),
        (bool, None),
        (lambda session: session.clear(), None),
        (lambda session: session.popitem(), None),
        (lambda session: session == {}, None),
        (lambda session: list(session.values()), None),
    ],
)
def test_guards(use: Callable[[Session], object], guards: set[str] | None) -> None:
    session = Store(a=1, b=1).load()
    use(session)
    assert session.guards() == guards
