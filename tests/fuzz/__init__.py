"""Readers fed with what nobody meant to hand in; see ../README.md."""
