"""Session ids, and the Redis keys that belong to them.

An id is `slot.secret`: three characters that name a Redis Cluster hash tag, and 192 random bits.
Redis sees a digest of the secret only, so that its memory, backups and logs let nobody in
(CVE-2019-16782). A rotated id keeps its slot: old and new key stay in one Cluster slot.
"""

from __future__ import annotations

import binascii
import hashlib
import re
import secrets
import string
from typing import Final

from asyncsession.errors import InvalidSessionData

__all__ = [
    "checked_handle",
    "index_key",
    "is_session_id",
    "new_id",
    "session_handle",
    "sibling_id",
    "store_key",
]

_SLOT_LETTERS: Final = string.ascii_letters + string.digits
_SLOT_LENGTH: Final = 3  # 62^3 tags spread evenly over Cluster's 16,384 slots
_SECRET_BYTES: Final = 24  # 192 bits; ASVS 5.0 7.2.3 asks for 128 or more
_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")
_ID: Final = re.compile(r"[A-Za-z0-9]{3}\.[A-Za-z0-9_-]{32}", re.ASCII)
_HANDLE: Final = re.compile(r"\{[A-Za-z0-9]{3}\}:[A-Za-z0-9_-]{43}", re.ASCII)


def new_id() -> str:
    """Return a fresh session id: 36 URL-safe characters, 192 bits of them secret."""
    return _in_slot("".join(secrets.choice(_SLOT_LETTERS) for _ in range(_SLOT_LENGTH)))


def sibling_id(session_id: str) -> str:
    """Return a fresh id whose key lives in the same Cluster slot as that of `session_id`."""
    return _in_slot(session_id[:_SLOT_LENGTH])


def is_session_id(candidate: object) -> bool:
    """Tell whether `candidate` has the form of an id; anything else never reaches Redis."""
    return isinstance(candidate, str) and _ID.fullmatch(candidate) is not None


def session_handle(session_id: str) -> str:
    """Return the public name of a session: `{slot}:digest`, of no use as an id."""
    slot, secret = session_id[:_SLOT_LENGTH], session_id[_SLOT_LENGTH + 1 :]
    return f"{{{slot}}}:{_digest(secret)}"


def checked_handle(stored: bytes) -> str:
    """Return the handle that the mark of a rotated session holds.

    Raises:
        InvalidSessionData: it holds none.
    """
    handle = stored.decode("ascii", "replace")
    if not _HANDLE.fullmatch(handle):
        raise InvalidSessionData("the mark of a rotated session is damaged")
    return handle


def store_key(prefix: str, handle: str) -> str:
    """Return the Redis key of the session called `handle`."""
    return f"{prefix}:{handle}"


def index_key(prefix: str, principal: str) -> str:
    """Return the Redis key of the list of a principal's sessions; it does not show who it is."""
    return f"{prefix}:of:{_digest(principal)}"


def _in_slot(slot: str) -> str:
    return f"{slot}.{secrets.token_urlsafe(_SECRET_BYTES)}"


def _digest(text: str) -> str:
    raw = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    packed = binascii.b2a_base64(raw, newline=False)  # what base64 calls, three steps further down
    return packed.rstrip(b"=").translate(_URL_SAFE).decode("ascii")
