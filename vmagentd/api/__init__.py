"""The edge: the only package that knows gRPC and protobuf."""
