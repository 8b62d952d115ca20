"""What the Python client does with a cluster: list, create, watch, patch, delete."""

from kubernetes import client, config, watch

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
stream = watch.Watch().stream(
    core.list_namespaced_config_map, namespace, resource_version=before, timeout_seconds=5
)
for event in stream:
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

print("python client: all well")
