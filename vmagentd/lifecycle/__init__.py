"""What a fact makes of a VM, and which step of an operation may follow which.

Pure: no clock, no I/O, no log. `events` and `sightings` are called by the journal's writer alone,
one fact after the other, so each answer rests on all the facts before it. What libvirt reports is
recorded, never rejected; what the daemon itself does (`steps`) is checked.
"""
