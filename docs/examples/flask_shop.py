"""A shop with a cart, a login, a list of devices and sign-out everywhere, on Flask.

    pip install 'asyncsession[embedded,flask]'
    python docs/examples/flask_shop.py

Try it at http://127.0.0.1:8000. It keeps its sessions in a Valkey server of its own, which
ends with it.
"""
# ruff: noqa: D103  the routes say what their views do

from __future__ import annotations

import sys

from flask import (
    Blueprint,
    Flask,
    abort,
    current_app,
    flash,
    redirect,
    render_template_string,
    request,
    session,
    url_for,
)
from werkzeug import Response

from asyncsession import Session, SyncSessionManager, merge
from asyncsession.integrations.flask import SessionInterface, current_session

PRICES = {"apple": 30, "pear": 40, "quince": 90}
routes = Blueprint("shop", __name__)

PAGE = """<!doctype html>
<title>Shop</title>
{% for message in get_flashed_messages() %}<p class="message">{{ message }}</p>{% endfor %}
<p>{{ views }} views, {{ total }} to pay</p>
{% for item, price in prices.items() %}
<form method="post" action="{{ url_for('.add', item=item) }}">
  <button>{{ item }}, {{ price }}</button> {{ cart.get(item, 0) }} in the cart
</form>
{% endfor %}
{% if user %}
<p>Hello, {{ user }}.</p>
<form method="post" action="{{ url_for('.logout') }}"><button>Log out</button></form>
<form method="post" action="{{ url_for('.logout_everywhere') }}">
  <button>Log out everywhere</button>
</form>
{% for device in devices %}
<form method="post" action="{{ url_for('.end_device') }}">
  {{ device.get("device") }}, last seen {{ device.last_seen.isoformat(" ", "seconds") }}
  {% if device.is_current %}this one{% else %}
  <button name="handle" value="{{ device.handle }}">End</button>{% endif %}
</form>
{% endfor %}
{% else %}
<form method="post" action="{{ url_for('.login') }}">
  <input name="name" required maxlength="50"> <button>Log in</button>
</form>
{% endif %}
"""


def manager() -> SyncSessionManager:
    found: SyncSessionManager = current_app.extensions["shop"]
    return found


def account(session: Session) -> str | None:
    return f"user:{session['name']}" if "name" in session else None


def user() -> str:
    return current_session().principal or abort(401)


def home() -> Response:
    return redirect(url_for(".shop"), 303)


@routes.get("/")
def shop() -> str:
    session["views"] = session.get("views", 0) + 1
    cart = {key[5:]: session[key] for key in session if key.startswith("cart:")}
    ours = current_session()
    devices = manager().sessions_of(ours.principal, current=ours) if ours.principal else []
    return render_template_string(
        PAGE,
        user=session.get("name"),
        views=session["views"],
        cart=cart,
        prices=PRICES,
        total=sum(PRICES[item] * count for item, count in cart.items()),
        devices=devices,
    )


@routes.post("/cart/<item>")
def add(item: str) -> Response:
    if item not in PRICES:
        abort(404)
    session[f"cart:{item}"] = session.get(f"cart:{item}", 0) + 1
    flash(f"There is one {item} more in your cart.")
    return home()


@routes.post("/login")
def login() -> Response:
    session["name"] = request.form["name"][:50]  # and here you would check a password
    session["device"] = request.headers.get("User-Agent", "unknown")[:100]
    return home()  # the session gets a new id as it is saved; the cart comes along


@routes.post("/logout")
def logout() -> Response:
    session.clear()
    return home()


@routes.post("/logout/everywhere")
def logout_everywhere() -> Response:
    manager().destroy_all(user())
    return home()


@routes.post("/devices/end")
def end_device() -> Response:
    for device in manager().sessions_of(user()):  # only ever one of the user's own
        if device.handle == request.form["handle"]:
            manager().destroy(device)
    return home()


def make_app(url: str = "embedded://shop") -> Flask:
    sessions = SyncSessionManager(url, merge={"views": merge.counter, "cart:*": merge.counter})
    app = Flask("shop")
    app.extensions["shop"] = sessions
    app.session_interface = SessionInterface(sessions, principal=account)
    app.register_blueprint(routes)
    return app


if __name__ == "__main__":
    make_app().run(port=int(sys.argv[1]) if sys.argv[1:] else 8000)
