"""Carries out Start and Stop.

An operation is committed before libvirt is asked, goes on whoever listens, and is over when its
outcome and the VM's true state are committed: only then its callers hear of it. Each is one task
on the event loop, and waits on the journal alone.
"""
