"""Hosts with a systemd of their own, on which the package is installed."""
