"""Histories of what clients did to sessions and were told, and a checker of what has to be true."""

from support.history.model import (
    LOSSES,
    Copy,
    History,
    Kind,
    Operation,
    Outcome,
    Rule,
    Violation,
)
from support.history.rules import check

__all__ = [
    "LOSSES",
    "Copy",
    "History",
    "Kind",
    "Operation",
    "Outcome",
    "Rule",
    "Violation",
    "check",
]
