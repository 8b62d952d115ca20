"""What the Python client does with a cluster: list, create, watch, patch, delete, exec, forward."""

from kubernetes import client, config, watch
from kubernetes.stream import portforward, stream

config.load_kube_config()
core = client.CoreV1Api()
namespace = "default"
name = "from-python"

nodes = core.list_node().items
assert len(nodes) == 3, nodes
assert all(node.spec.pod_cidr for node in nodes)

before = core.list_namespaced_config_map(namespace).metadata.resource_version
body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name), data={"a": "1"})
core.create_namespaced_config_map(namespace, body)
core.patch_namespaced_config_map(name, namespace, {"data": {"b": "2"}})
read = core.read_namespaced_config_map(name, namespace)
assert read.data == {"a": "1", "b": "2"}, read.data
core.delete_namespaced_config_map(name, namespace)

seen = []
events = watch.Watch().stream(
    core.list_namespaced_config_map, namespace, resource_version=before, timeout_seconds=5
)
for event in events:
    if event["object"].metadata.name == name:
        seen.append(event["type"])
    if event["type"] == "DELETED":
        break
assert seen == ["ADDED", "MODIFIED", "DELETED"], seen

try:
    core.read_namespaced_config_map(name, namespace)
    raise AssertionError("the object is still there")
except client.ApiException as error:
    assert error.status == 404, error

process = stream(
    core.connect_get_namespaced_pod_exec,
    "tools",
    "lab",
    command=["sh", "-c", "read line; echo got $line; echo wrong >&2; exit 3"],
    stdin=True,
    stdout=True,
    stderr=True,
    tty=False,
    _preload_content=False,
)
process.write_stdin("hello\n")
process.run_forever(timeout=30)
assert process.read_stdout() == "got hello\n"
assert process.read_stderr() == "wrong\n"
assert process.returncode == 3, process.returncode

forward = portforward(
    core.connect_get_namespaced_pod_portforward, "echo-node1", "lab", ports="8080"
)
socket = forward.socket(8080)
socket.setblocking(True)
socket.sendall(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
answer = b""
while chunk := socket.recv(4096):
    answer += chunk
socket.close()
assert answer.startswith(b"HTTP/1.1 200") and b"echo-node1" in answer, answer
assert forward.error(8080) is None, forward.error(8080)

print("python client: all well")
