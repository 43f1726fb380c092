"""A Dataflow for one machine: google.dataflow.v1beta3 over gRPC, each job a child process."""

from service.local.dataflow.server import DataflowServer

__all__ = ["DataflowServer"]
