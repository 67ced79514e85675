"""Writing files whole."""

import pytest

from nodemanager_trellis import atomic


def test_file_has_text_and_mode_and_nothing_else_is_left(tmp_path):
    """The text replaces the old one, with the asked mode; no temporary file stays."""
    path = tmp_path / "x"
    path.write_text("old, and longer")
    atomic.write_text(path, "né", 0o644)

    assert ("né", 0o644) == (path.read_text("utf-8"), path.stat().st_mode & 0o777)
    atomic.write_text(path, "secret")
    assert 0o600 == path.stat().st_mode & 0o777
    assert ["x"] == [p.name for p in tmp_path.iterdir()]


def test_failed_write_leaves_the_old_file(tmp_path):
    """Text that cannot be encoded leaves the old file and no other."""
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        atomic.write_text(path, "\udc80")

    assert ["old"] == [p.read_text() for p in tmp_path.iterdir()]
