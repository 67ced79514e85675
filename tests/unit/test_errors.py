"""Exceptions say what was wrong, where, and what the caller may assume."""

import errno

import pytest

from nodemanager_trellis import errors


def test_invalid_input_has_message_and_path():
    """The text starts with the path, if there is one."""
    error = errors.InvalidInput("not an id", "$.node_id")

    assert ("$.node_id: not an id", "not an id", "$.node_id") == (str(error), error.message, error.path)
    assert "empty" == str(errors.InvalidInput("empty"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("veth tr1", "create"), "create veth tr1: failed"),
        (("veth tr1", "create", errno.EEXIST), "create veth tr1: File exists"),
        (("qdisc", "change", 0, "Invalid minor handle"), "change qdisc: Invalid minor handle"),
        (
            ("qdisc", "change", errno.EINVAL, "Invalid minor handle"),
            "change qdisc: Invalid minor handle (Invalid argument)",
        ),
    ],
)
def test_substrate_error_tells_the_kernels_sentence(arguments, text):
    """Operation, object, and the best reason at hand."""
    error = errors.SubstrateError(*arguments)

    assert text == str(error)
    assert arguments[:2] == (error.what, error.operation)


def test_plc_error_says_whether_to_retry():
    """A network fault may pass, a refusal does not."""
    assert (0, True) == (errors.PlcError("no route", retry=True).code, errors.PlcError("x", retry=True).retry)
    assert (103, False) == (errors.PlcError("no", 103).code, errors.PlcError("no", 103).retry)


def test_all_are_trellis_errors():
    """One class catches them all."""
    kinds = [
        errors.InvalidInput,
        errors.NotOurs,
        errors.Unsupported,
        errors.SubstrateError,
        errors.PluginError,
        errors.PlcError,
    ]

    assert all(issubclass(kind, errors.TrellisError) for kind in kinds)
