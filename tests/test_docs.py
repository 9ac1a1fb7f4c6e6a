"""What the README and the docs show is run, and what they state is so."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from support.backends import Backend
from support.replicas import Pair
from support.servers import Server
from support.web import connect, serve

from asyncsession import Commit, SessionManager, SyncSessionManager, errors, machine
from asyncsession.integrations.answers import answer_to
from asyncsession.integrations.asgi import SessionMiddleware
from asyncsession.integrations.cookies import CookieOptions

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", page.read_text("utf-8"))


def sources(page: Path, store: str) -> list[str]:
    """Return a page's Python blocks, with this store in place of the one they name."""
    found = blocks(page, "python")
    return [re.sub(r'"(redis|embedded)://[^"]*"', repr(store), block) for block in found]


async def run(page: Path, store: str, **names: Any) -> dict[str, Any]:
    """Run a page's Python blocks one after the other, and return the names they leave."""
    for source in sources(page, store):
        before = names.get("manager")
        code = compile(source, page.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if inspect.isawaitable(result := eval(code, names)):
            await result
        if before is not None and before is not names["manager"]:
            await before.aclose()
    return names


async def test_readme(valkey: Backend) -> None:
    names = await run(ROOT / "README.md", valkey.url)
    async with names["manager"] as manager:
        session_id = await names["handler"](None)
        await names["buy"](session_id)
        assert dict(await manager.load(session_id)) == {
            "views": 1,
            "prefs": {"theme": "dark"},
            "stock": 0,
        }
        rotated = await names["login"](session_id, 42)
        assert (await manager.load(session_id)).is_new
        assert (await manager.load(rotated)).principal == "user:42"
        assert await names["sign_out_everywhere"](42) == 1


async def test_readme_application(valkey: Backend) -> None:
    import httpx

    first = blocks(ROOT / "README.md", "python")[0].replace("redis://localhost:6379/0", valkey.url)
    names: dict[str, Any] = {}
    exec(first, names)
    transport = httpx.ASGITransport(app=names["app"])
    async with (
        names["manager"],
        httpx.AsyncClient(transport=transport, base_url="http://test") as browser,
    ):
        views = [(await browser.get("/")).json()["views"] for _ in range(3)]
    assert views == [1, 2, 3]


async def test_merging(valkey: Backend) -> None:
    manager = valkey.manager(prefix="session")
    session = await manager.load()
    session["balance"] = 100
    await manager.save(session)
    names = await run(
        ROOT / "docs" / "merging.md", valkey.url, session=session, session_id=session.id
    )
    assert isinstance(names["commit"], Commit)
    assert names["session"]["balance"] == 70
    await names["manager"].aclose()


async def test_guide(valkey: Backend) -> None:
    names = await run(ROOT / "docs" / "guide.md", valkey.url)
    async with names["manager"] as manager:
        session = await manager.load()
        await names["login"](session, 1)
        assert (await manager.load(session.id)).principal == "user:1"
        await names["logout"](session)
        assert (await manager.load(session.id)).is_new


async def test_durability(pair: Pair) -> None:
    names = await run(ROOT / "docs" / "durability.md", pair.url)
    async with names["manager"] as manager:
        session = await manager.load()
        await names["pay"](session, 5)
        assert (await manager.load(session.id))["paid"] == 5
    assert await asyncio.to_thread(pair.waits)


def test_sync(get_server: Callable[[str], Server]) -> None:
    names: dict[str, Any] = {}
    first, *others = sources(ROOT / "docs" / "sync.md", get_server("valkey9").url)
    exec(first, names)
    answers: list[tuple[str, list[tuple[str, str]]]] = []

    def start_response(status: str, headers: list[tuple[str, str]]) -> None:
        answers.append((status, headers))

    environ: dict[str, str] = {}
    for views in (1, 2):
        assert names["app"](environ, start_response) == [b"%d views" % views]
        ((_, cookie),) = answers[-1][1]
        environ["HTTP_COOKIE"] = cookie.partition(";")[0]
    for block in others:
        exec(block, names)
    assert (names["session"]["stock"], len(names["devices"])) == (2, 1)
    with names["manager"] as manager:
        assert manager.load(names["session"].id).is_new


def test_the_page_about_threads_knows_the_options() -> None:
    text = (ROOT / "docs" / "sync.md").read_text("utf-8")
    default = inspect.signature(SyncSessionManager).parameters["connections"].default
    assert f"`connections`: up to {default} " in text
    deploying = (ROOT / "docs" / "deploying.md").read_text("utf-8")
    assert f"| `connections` | {default} |" in deploying


async def test_web(valkey: Backend) -> None:
    names = await run(ROOT / "docs" / "web.md", valkey.url)
    app, overrides = names["app"], dict(names["app"].dependency_overrides)
    app.dependency_overrides.clear()
    async with names["manager"] as manager:
        async with serve(app) as browser:
            assert (await browser.post("/cart/apple")).json() == {"items": 1}
            old_id = browser.cookies["session"]
            assert (await browser.post("/login")).status_code == 200
            assert (await manager.load(old_id)).is_new
            progress = (await browser.get("/progress")).text
            assert progress == "data: 0\n\ndata: 1\n\ndata: 2\n\n"
            session = await manager.load(browser.cookies["session"])
            assert (session.principal, session["step"]) == ("user:42", 2)
            async with connect(browser, "/live", session.id) as connection:
                await connection.send("hello")
                assert await connection.recv() == '["hello"]'
            assert (await browser.post("/logout")).status_code == 200
            assert "session" not in browser.cookies
            app.dependency_overrides |= overrides
            assert (await browser.post("/cart/apple")).json() == {"items": 1}
            assert "session" not in browser.cookies
        for site, path in ((names["site"], "/views"), (names["lazy_site"], "/visits")):
            async with serve(site) as browser:
                assert [(await browser.get(path)).json() for _ in range(2)] == [1, 2]
        async with serve(names["api"]) as client:
            session_id = (await client.post("/items/a")).headers["session-id"]
            headers = {"authorization": f"Bearer {session_id}"}
            assert (await client.post("/items/b", headers=headers)).json() == ["a", "b"]
        assert names["on_error"]({}, errors.SessionGone()).status_code == 303
        assert names["on_error"]({}, errors.SessionConflict("")).status_code == 409
        assert names["on_error"]({}, errors.StoreUnavailable()) is None


def test_the_web_page_lists_every_option_and_answer() -> None:
    text = (ROOT / "docs" / "web.md").read_text("utf-8")
    options = inspect.signature(SessionMiddleware).parameters
    for name in {*options, *CookieOptions.__annotations__} - {"self", "app", "cookie"}:
        assert f"{name}=" in text or f"`{name}`" in text, name
    assert f"`watch` seconds, {options['watch'].default:g} by default" in text
    for error in errors.__all__:
        if answer := answer_to(getattr(errors, error).__new__(getattr(errors, error))):
            assert re.search(rf"^\|.*`{error}`.*\| {answer.status}", text, re.MULTILINE), error


@pytest.mark.parametrize("flavour", ["valkey9", "redis8", "redis-system"])
async def test_the_rights_in_the_docs_are_enough(
    get_server: Callable[[str], Server], flavour: str
) -> None:
    (rule,) = [b for b in blocks(ROOT / "docs" / "deploying.md", "") if b.startswith("ACL")]
    server = get_server(flavour)
    async with Redis.from_url(server.url) as admin:
        await admin.execute_command(*rule.split())  # type: ignore[no-untyped-call]
        try:
            async with SessionManager(f"redis://app:secret@127.0.0.1:{server.port}/0") as manager:
                session = await manager.load()
                session["a"], session.principal = 1, "user:rights"
                await manager.save(session)
                await manager.rotate(session)
                await manager.touch(session)
                assert len(await manager.sessions_of("user:rights")) == 1
                assert await manager.destroy_all("user:rights") == 1
                assert (await manager.load(session.id)).is_new
        finally:
            await admin.acl_deluser("app")


def test_the_guide_lists_every_error_and_verb() -> None:
    text = (ROOT / "docs" / "guide.md").read_text("utf-8")
    for name in errors.__all__:
        assert f"`{name}`" in text
    for verb in vars(SessionManager):
        if not verb.startswith("_") and verb != "aclose":
            assert f"manager.{verb}(" in text, verb


def test_the_numbers_in_the_docs_are_those_of_the_code() -> None:
    options = inspect.signature(SessionManager).parameters
    text = (ROOT / "docs" / "deploying.md").read_text("utf-8")
    assert f"| `max_bytes` | {options['max_bytes'].default:,} |" in text
    assert f"| `timeout` | {options['timeout'].default:g} s |" in text
    assert f"at most {machine.MAX_TIMEOUT:g} s |" in text
    assert options["idle_timeout"].default == 86_400
    assert options["absolute_timeout"].default == 14 * 86_400
    guide = (ROOT / "docs" / "guide.md").read_text("utf-8")
    assert f"for {machine.COMMIT_WINDOW:g} seconds after" in guide


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text("utf-8"))
    for target, anchor in links:
        linked = (page.parent / target) if target else page
        assert linked.exists(), target
        headings = re.findall(r"^#+ (.*)$", linked.read_text("utf-8"), re.MULTILINE)
        slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in slugs, anchor
