"""A counter and a cart behind a login, with a list of devices and sign-out everywhere, on aiohttp.

    pip install 'asyncsession[aiohttp,embedded]'
    python docs/examples/aiohttp_counter.py

It keeps its sessions in a Valkey server of its own, which ends with it.
"""
# ruff: noqa: D103  the routes say what their handlers do

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from html import escape

from aiohttp import web

from asyncsession import Session, SessionManager, merge
from asyncsession.integrations.aiohttp import get_session, setup

MANAGER = web.AppKey("manager", SessionManager)
routes = web.RouteTableDef()


def post(action: str, label: str, fields: str = "") -> str:
    return f'<form method="post" action="/{action}">{fields}<button>{label}</button></form>'


@routes.get("/")
async def page(request: web.Request) -> web.Response:
    session = await get_session(request)
    session["views"] = session.get("views", 0) + 1
    parts = [f"<h1>{session['views']} views</h1>", "<h2>Cart</h2>"]
    parts += [f"<li>{escape(item)}</li>" for item in session.get("cart", [])]
    parts.append(post("cart", "Add", '<input name="item" required>'))
    if session.principal is None:
        parts.append(post("login", "Log in", '<input name="name" required>'))
    else:
        parts.append(f"<p>Hello, {escape(session['name'])}.</p>")
        parts.append(await devices(request.app[MANAGER], session, session.principal))
        parts.append(post("logout", "Log out") + post("logout/everywhere", "Log out everywhere"))
    return web.Response(text="<!doctype html>" + "\n".join(parts), content_type="text/html")


async def devices(manager: SessionManager, session: Session, principal: str) -> str:
    rows = []
    for device in await manager.sessions_of(principal, current=session):
        name = escape(device.get("device", "unknown"))
        if device.is_current:
            rows.append(f"<p>{name}, this one</p>")
        else:
            handle = f'<input type="hidden" name="handle" value="{device.handle}">'
            seen = f"{device.last_seen:%d %B, %H:%M}" if device.last_seen else "never"
            rows.append(f"<p>{name}, last seen {seen}</p>" + post("devices/end", "End", handle))
    return "<h2>Your devices</h2>" + "".join(rows)


@routes.post("/cart")
async def add(request: web.Request) -> web.Response:
    session = await get_session(request)
    session.setdefault("cart", []).append(str((await request.post())["item"]))
    raise web.HTTPSeeOther("/")


@routes.post("/login")
async def login(request: web.Request) -> web.Response:
    name = str((await request.post())["name"])  # and here you would check a password
    session = await get_session(request)
    session["name"] = name
    session["device"] = request.headers.get("User-Agent", "unknown")[:100]
    session.principal = f"user:{name}"
    await request.app[MANAGER].rotate(session)  # a new id; the cart comes along
    raise web.HTTPSeeOther("/")


@routes.post("/logout")
async def logout(request: web.Request) -> web.Response:
    await request.app[MANAGER].destroy(await get_session(request))
    raise web.HTTPSeeOther("/")


@routes.post("/logout/everywhere")
async def logout_everywhere(request: web.Request) -> web.Response:
    session = await get_session(request)
    if session.principal is not None:
        await request.app[MANAGER].destroy_all(session.principal)
    raise web.HTTPSeeOther("/")


@routes.post("/devices/end")
async def end_device(request: web.Request) -> web.Response:
    session, handle = await get_session(request), (await request.post())["handle"]
    if session.principal is not None:  # only ever one of the user's own
        for device in await request.app[MANAGER].sessions_of(session.principal):
            if device.handle == handle:
                await request.app[MANAGER].destroy(device)
    raise web.HTTPSeeOther("/")


async def close_manager(app: web.Application) -> AsyncIterator[None]:
    async with app[MANAGER]:
        yield


def make_app(url: str = "embedded://counter") -> web.Application:
    app = web.Application()
    app[MANAGER] = SessionManager(url, merge={"views": merge.counter, "cart": merge.append})
    setup(app, app[MANAGER], secure=False)  # secure=False: plain HTTP, on this machine only
    app.cleanup_ctx.append(close_manager)
    app.add_routes(routes)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=int(sys.argv[1]) if sys.argv[1:] else 8000)
