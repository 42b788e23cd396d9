"""Journals every state change of the VMs on a KVM host and serves it over gRPC."""
