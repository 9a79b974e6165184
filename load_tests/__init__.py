"""Proof from outside: load on a running server, and what README's numbers come from."""
