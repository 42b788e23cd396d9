"""The client side of vmagentd: the stubs (`vmagent.v1`), a library and vmagentctl."""
