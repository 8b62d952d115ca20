// What Kubernetes' client for JavaScript does with a cluster: informer, patches, exec, port-forward.

import assert from "node:assert/strict";
import { once } from "node:events";
import { PassThrough } from "node:stream";
import { text } from "node:stream/consumers";

import {
  CoreV1Api,
  Exec,
  KubeConfig,
  PatchStrategy,
  PortForward,
  makeInformer,
  setHeaderOptions,
} from "@kubernetes/client-node";

const config = new KubeConfig();
config.loadFromDefault();
const core = config.makeApiClient(CoreV1Api);
const namespace = "lab";
const name = "from-npm";

/** Ends the program when something is waited for in vain. */
const guard = setTimeout(() => {
  console.error("npm client: not done in 60 s");
  process.exit(1);
}, 60_000);

async function informer() {
  const labels = { app: "npm" };
  const list = () => core.listNamespacedConfigMap({ namespace, labelSelector: "app=npm" });
  const path = `/api/v1/namespaces/${namespace}/configmaps`;
  const informer = makeInformer(config, path, list, "app=npm");
  const seen = [];
  const gone = new Promise((resolve, reject) => {
    informer.on("add", (map) => seen.push(`add ${map.metadata.name}`));
    informer.on("update", (map) => seen.push(`update ${map.data.n}`));
    informer.on("error", reject);
    informer.on("delete", (map) => {
      seen.push(`delete ${map.metadata.name}`);
      resolve();
    });
  });
  await informer.start();
  await core.createNamespacedConfigMap({
    namespace,
    body: { metadata: { name, labels }, data: { n: "0" } },
  });
  await patches();
  await core.deleteNamespacedConfigMap({ namespace, name });
  await gone;
  await informer.stop();
  assert.deepEqual(seen, [
    `add ${name}`,
    "update json",
    "update merge",
    "update strategic",
    "update applied",
    `delete ${name}`,
  ]);
}

/** All four kinds of patches, and whose a field is after the last. */
async function patches() {
  const patch = (body, strategy, more = {}) =>
    core.patchNamespacedConfigMap(
      { namespace, name, body, ...more },
      strategy && setHeaderOptions("Content-Type", strategy),
    );
  // Without a choice this client sends JSON patches.
  await patch([{ op: "replace", path: "/data/n", value: "json" }]);
  await patch({ data: { n: "merge" } }, PatchStrategy.MergePatch);
  await patch({ data: { n: "strategic" } }, PatchStrategy.StrategicMergePatch);
  const body = { apiVersion: "v1", kind: "ConfigMap", metadata: { name }, data: { n: "applied" } };
  const conflict = patch(body, PatchStrategy.ServerSideApply, { fieldManager: "npm" });
  await assert.rejects(conflict, (error) => error.code === 409);
  const force = { fieldManager: "npm", force: true };
  const map = await patch(body, PatchStrategy.ServerSideApply, force);
  const owners = map.metadata.managedFields.filter((entry) => entry.manager === "npm");
  assert.equal(owners.length, 1);
  assert.equal(owners[0].operation, "Apply");
  assert.ok(owners[0].fieldsV1["f:data"]["f:n"]);
}

/** Input up to its end, both outputs, and the exit code. */
async function exec() {
  const [stdin, stdout, stderr] = [new PassThrough(), new PassThrough(), new PassThrough()];
  const command = ["sh", "-c", "cat; echo wrong >&2; exit 3"];
  const status = new Promise((resolve, reject) => {
    new Exec(config)
      .exec(namespace, "tools", "tools", command, stdout, stderr, stdin, false, resolve)
      .catch(reject);
  });
  stdin.end("hello\n");
  const { causes } = (await status).details;
  assert.equal(await text(stdout), "hello\n");
  assert.equal(await text(stderr), "wrong\n");
  assert.deepEqual(causes, [{ reason: "ExitCode", message: "3" }]);
}

async function portForward() {
  const [input, output, errors] = [new PassThrough(), new PassThrough(), new PassThrough()];
  const forward = new PortForward(config);
  const socket = await forward.portForward(namespace, "echo-node1", [8080], output, errors, input);
  input.write("GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n");
  await once(socket, "close");
  output.end();
  const answer = await text(output);
  assert.match(answer, /^HTTP\/1\.1 200/);
  assert.match(answer, /echo-node1/);
}

await informer();
await exec();
await portForward();
clearTimeout(guard);
console.log("npm client: all well");
