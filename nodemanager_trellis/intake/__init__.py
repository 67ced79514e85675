"""The one door for untrusted input: bytes and plain values in, frozen model out. Only ``InvalidInput`` leaves it."""
