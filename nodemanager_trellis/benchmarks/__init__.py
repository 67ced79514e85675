"""Numbers we state, measured again on your machine."""
