"""Chaos: a dozen guests, everybody at once, and the daemon killed in the middle of it.

A run is made of rounds. In each of them guests are started, stopped, paused, saved, defined and
killed by libvirt's other clients, by the daemon's clients and by themselves, while the daemon and
libvirtd are killed and started again. Then all come to rest, and what every client has seen is
held against the journal, the journal against itself, and its end against libvirt.

What is done, in which order and after which pause follows from a seed; what it meets does not,
for the guests, libvirtd, the daemon and its clients really run side by side.
"""
