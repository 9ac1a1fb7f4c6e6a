"""What each Sentinel says of a master, and whom to believe; without any I/O.

- The configuration of the highest epoch is believed. A Sentinel that has not heard of a failover
  yet names the old master, and no longer calls it down once it was started again.
- The address is what GET-MASTER-ADDR-BY-NAME says. The one in SENTINEL MASTER stays the old one, at
  the new epoch, in the Sentinel that leads a failover, until all replicas follow the new master.
- A master that is being replaced is nobody's: its replica may have been promoted already, and the
  epoch is raised only once that was seen.
- No majority has to answer. It might know no more than a minority, since at first only one Sentinel
  knows how a failover ended; and a master that is well would be out of reach without Sentinels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from redis.utils import str_if_bytes

from asyncsession.protocol import Refused
from asyncsession.transport.addresses import Address
from asyncsession.transport.faults import before_sending

__all__ = ["Answer", "View", "ask", "believed", "view_of"]


class View(NamedTuple):
    """What a Sentinel says of a master.

    Attributes:
        epoch: of the configuration; each failover has a higher one.
        address: of the master.
        others: how many more Sentinels it knows of.
        is_down: whether it gets no answer from there.
        is_replaced: whether it is replacing the master, or a quorum has agreed that it is down.
    """

    epoch: int
    address: Address
    others: int
    is_down: bool
    is_replaced: bool


Answer = View | Exception | None
"""None is that of a Sentinel that does not know the master."""


def ask(questions: Any, service: str) -> Any:
    """Put into a pipeline of redis-py what to ask a Sentinel, and return the pipeline."""
    questions.sentinel_master(service, return_responses=True)
    questions.sentinel_get_master_addr_by_name(service, return_responses=True)
    return questions


def view_of(state: Any, address: Any) -> Answer:
    """Return what a Sentinel's answers to the questions mean, errors among them."""
    if address is None:
        return None
    for answer in (address, state):
        if isinstance(answer, Exception):
            return answer
    host, port = str_if_bytes(address[0]), int(address[1])
    is_about = (state["ip"], state["port"]) == (host, port)  # and not about the one before
    is_replaced = state["is_odown"] or "failover_in_progress" in state["flags"]
    return View(
        epoch=state["config-epoch"],
        address=(host, port),
        others=state["num-other-sentinels"],
        is_down=is_about and state["is_sdown"],
        is_replaced=is_about and is_replaced,
    )


def believed(answers: Iterable[Answer], service: str, min_others: int) -> Address:
    """Return the address of the master.

    Args:
        answers: of the Sentinels.
        service: the name by which they know the master.
        min_others: how many more Sentinels one has to know of to be believed.

    Raises:
        Refused: none names a master, or it is down or being replaced.
    """
    said = list(answers)
    views = [one for one in said if isinstance(one, View) and one.others >= min_others]
    if not views:
        errors = [one for one in said if isinstance(one, Exception)]
        lasting = [fault for fault in map(before_sending, errors) if not fault.passing]
        kinds = ", ".join(dict.fromkeys(type(error).__name__ for error in errors))
        why = str(lasting[0]) if lasting else kinds or "they do not know it"
        raise Refused(
            f"no Sentinel names a master of {service!r} ({why})",
            passing=not errors or len(lasting) < len(errors),
        ) from next(iter(errors), None)
    epoch = max(view.epoch for view in views)
    latest = [view for view in views if view.epoch == epoch]
    if any(view.is_replaced for view in latest) or all(view.is_down for view in latest):
        reason = f"the Sentinels take the master of {service!r} for down, or are replacing it"
        raise Refused(reason, passing=True)
    # One and the same, unless they were told different addresses of it.
    return Counter(view.address for view in latest).most_common(1)[0][0]
