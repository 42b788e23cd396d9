"""The only package that knows libvirt."""
