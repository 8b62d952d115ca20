"""A controller in a pod: for each ConfigMap with the label `service: wanted` it keeps a Service with
the port that the ConfigMap says, and notes its address there."""

import json

from kubernetes import client, config, watch
from kubernetes.dynamic import DynamicClient

config.load_incluster_config()
core = client.CoreV1Api()
services = DynamicClient(client.ApiClient()).resources.get(api_version="v1", kind="Service")
with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace") as file:
    namespace = file.read()


def keep(wanted):
    """Applies the Service of a ConfigMap, which owns it."""
    name = wanted.metadata.name
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": wanted.metadata.uid}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "ownerReferences": [owner]},
        "spec": {"ports": [{"name": "http", "port": int(wanted.data["port"])}]},
    }
    made = services.server_side_apply(
        body=service, name=name, namespace=namespace, field_manager="python", force_conflicts=True
    )
    note = {"metadata": {"annotations": {"example.org/address": made.spec.clusterIP}}}
    core.patch_namespaced_config_map(name, namespace, note)


try:
    core.list_namespaced_secret(namespace)
    raise SystemExit("the account may read secrets")
except client.ApiException as error:
    assert error.status == 403, error
    print("may not list secrets:", json.loads(error.body)["message"])

for event in watch.Watch().stream(
    core.list_namespaced_config_map, namespace, label_selector="service=wanted"
):
    print(event["type"], event["object"].metadata.name)
    if event["type"] != "DELETED":
        keep(event["object"])
