"""Generated from protos/vmagent/v1/; nothing here is written by hand."""
