"""An ordinary gRPC client: Python, default options, no generated code. Usage: python_client.py SOCKET."""

import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

# Never ends by itself, and gives SQLite's progress handler a chance to interrupt it.
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"

channel = grpc.insecure_channel("unix:" + sys.argv[1])
# Python's reflection client speaks v1alpha only.
pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))


def method(service, name):
    descriptor = pool.FindServiceByName("retrovisor.v1." + service).FindMethodByName(name)
    kind = channel.unary_stream if descriptor.server_streaming else channel.unary_unary
    call = kind(
        f"/retrovisor.v1.{service}/{name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(descriptor.output_type).FromString,
    )
    request = GetMessageClass(descriptor.input_type)
    return lambda timeout=None, **fields: call(request(**fields), timeout=timeout)


def code_of(call):
    try:
        call()
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


def say(*words):
    print(*words, flush=True)


list_machines = method("MachineService", "ListMachines")
query = method("QueryService", "Query")
watch = method("WatchService", "Watch")

# The second request refers to the authority of the first by its index in the dynamic table.
for _ in range(3):
    say("list", len(list_machines().machines))
say("rows", query(sql="SELECT 1 UNION SELECT 2").table.rows[1].cells[0].integer)
say("unknown", code_of(lambda: next(watch(machine="nope"))))
for _ in range(8):
    say("late", code_of(lambda: query(sql=ENDLESS, timeout=0.3)))
say("watching")
events = watch(machine="")
say("ended", code_of(lambda: next(events)))
