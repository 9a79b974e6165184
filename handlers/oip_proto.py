"""The messages of oip.proto as Python classes, made when this is imported: no generated code, no compiler needed.

They live in a descriptor pool of their own: in the default one they would clash with those of tritonclient, which
describes the same package, in a process that imports both.
"""

import re
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

FILE = Path(__file__).with_name("oip.proto")
FIELD = re.compile(r"(repeated )?(?:map<string, (?P<of>\w+)>|(?P<type>\w+)) (?P<name>\w+) = (?P<number>\d+);")
PLAIN = ("bool", "bytes", "double", "float", "int32", "int64", "string", "uint32", "uint64")


def described(text: str) -> FileDescriptorProto:
    """The descriptor of a .proto file of messages: fields, maps from strings and oneofs, each on lines of its own."""
    file = FileDescriptorProto(name=FILE.name, syntax="proto3")
    around: list[Any] = [file]  # the file, then the messages that are open; None for a service and for a oneof
    for line in text.splitlines():
        match line.partition("//")[0].replace("{}", "").split():
            case [] | ["syntax" | "rpc", *_]:
                pass
            case ["package", name]:
                file.package = name.removesuffix(";")
            case ["message", name, *brace]:
                outer = around[-1]
                message = (outer.message_type if outer is file else outer.nested_type).add(name=name)
                if brace:
                    around.append(message)
            case ["service", _, "{"]:
                around.append(None)
            case ["oneof", name, "{"]:
                around[-1].oneof_decl.add(name=name)
                around.append(None)
            case ["}"]:
                around.pop()
            case words:
                _add_field(around, " ".join(words))
    return file


def _add_field(around: list[Any], line: str) -> None:
    found = FIELD.fullmatch(line)
    assert found is not None, f"{FILE.name} has a line that is not understood: {line}"
    in_oneof = around[-1] is None
    message = around[-2] if in_oneof else around[-1]
    field = message.field.add(name=found["name"], number=int(found["number"]))
    kind = found["type"]
    if found["of"]:  # on the wire a list of messages that have a key and a value
        kind = f"{found['name'].capitalize()}Entry"
        entry = message.nested_type.add(name=kind, options={"map_entry": True})
        _add_field([entry], "string key = 1;")
        _add_field([entry], f"{found['of']} value = 2;")
    field.label = FieldDescriptorProto.LABEL_OPTIONAL
    if found[1] or found["of"]:
        field.label = FieldDescriptorProto.LABEL_REPEATED
    if kind in PLAIN:
        field.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
    else:
        field.type = FieldDescriptorProto.TYPE_MESSAGE
        field.type_name = kind  # the pool finds the nearest of that name, outwards from here
    if in_oneof:
        field.oneof_index = len(message.oneof_decl) - 1


_file = described(FILE.read_text())
_pool = DescriptorPool()
_pool.AddSerializedFile(_file.SerializeToString())


def _class(name: str) -> Any:
    return GetMessageClass(_pool.FindMessageTypeByName(f"{_file.package}.{name}"))


ServerLiveResponse = _class("ServerLiveResponse")
ServerReadyResponse = _class("ServerReadyResponse")
ServerMetadataResponse = _class("ServerMetadataResponse")
ModelReadyRequest = _class("ModelReadyRequest")
ModelReadyResponse = _class("ModelReadyResponse")
ModelMetadataRequest = _class("ModelMetadataRequest")
ModelMetadataResponse = _class("ModelMetadataResponse")
ModelInferRequest = _class("ModelInferRequest")
ModelInferResponse = _class("ModelInferResponse")
RepositoryIndexResponse = _class("RepositoryIndexResponse")
