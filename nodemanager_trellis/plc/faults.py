"""PLCAPI's faults: the codes and texts that operators' scripts know."""

from __future__ import annotations

from nodemanager_trellis.api.server import Fault


def invalid_method(name: str) -> Fault:
    """There is no such method."""
    return Fault(100, f"Invalid method {name}")


def argument_count(got: int, least: int, most: int) -> Fault:
    """Too few or too many arguments; the auth struct counts."""
    expected = f"{least}-{most}" if most > least else f"{least}"
    return Fault(101, f"Expected {expected} arguments, got {got}")


def invalid(detail: str, name: str = "") -> Fault:
    """An argument is wrong; ``name`` says which one when its type is meant."""
    return Fault(102, f"Invalid {name} value: {detail}" if name else f"Invalid argument: {detail}")


def not_authenticated(detail: str) -> Fault:
    """The caller is not who it says, or (with a password) lacks the role."""
    return Fault(103, f"Failed to authenticate call: {detail}")


def denied(detail: str) -> Fault:
    """The caller is known and may not do this."""
    return Fault(108, f"Permission denied: {detail}")
