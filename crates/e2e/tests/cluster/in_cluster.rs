//! A controller in a pod, by its ServiceAccount: it knows of the cluster what every pod knows.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::text_of;
use e2e::{eventually, workspace};

use super::languages::{data, interpreter};
use super::world::World;

/// How soon a controller follows what it watches.
const FOLLOWS: Duration = Duration::from_secs(20);

/// A controller that knows of the cluster what every pod knows, and may do what its Role says.
pub fn python_controller(world: &World) -> Result<()> {
    let cluster = &world.cluster;
    cluster.apply(&controller()?)?;
    cluster.pod_ready("python", "controller")?;
    cluster.apply(&wanted("8080"))?;
    let port = || cluster.field("python", "service", "shop", "/spec/ports/0/port");
    eventually("the Service is made", FOLLOWS, || {
        ensure!(port()? == "8080");
        let address = cluster.field("python", "service", "shop", "/spec/clusterIP")?;
        let note = "/metadata/annotations/example.org~1address";
        ensure!(cluster.field("python", "configmap", "shop", note)? == address);
        Ok(())
    })?;
    cluster.apply(&wanted("9090"))?;
    eventually("the Service follows", FOLLOWS, || {
        ensure!(port()? == "9090");
        Ok(())
    })?;
    cluster.kubectl(&["delete", "configmap", "-n", "python", "shop"])?;
    eventually("the Service goes with its owner", FOLLOWS, || {
        ensure!(port().is_err(), "it is there");
        Ok(())
    })?;
    let said = cluster.kubectl(&["logs", "-n", "python", "controller"])?;
    let line = "may not list secrets: secrets is forbidden: User \
                \"system:serviceaccount:python:controller\" cannot list resource \"secrets\" in API \
                group \"\" in the namespace \"python\"";
    ensure!(said.contains(line), "{said}");
    cluster.kubectl(&["delete", "namespace", "python"]).map(drop)
}

fn wanted(port: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\n\
         metadata: {{name: shop, namespace: python, labels: {{service: wanted}}}}\n\
         data: {{port: \"{port}\"}}\n"
    )
}

/// The controller with its rights. Pods see the machine's `/usr`; an interpreter from elsewhere comes
/// along at its place, and so do the client and the program.
fn controller() -> Result<String> {
    let base = ["-c", "import sys; print(sys.base_prefix)"];
    let base = text_of(Command::new(interpreter()).args(base).output()?)?;
    let tools = fs::canonicalize(workspace().join("target/tools/python"))?;
    let program = fs::canonicalize(data("controller.py"))?;
    let base = PathBuf::from(base.trim());
    let mut shown = vec![tools.as_path(), program.parent().context("a directory")?];
    if !base.starts_with("/usr") {
        shown.push(&base);
    }
    let (mut mounts, mut volumes) = (String::new(), String::new());
    for (number, path) in shown.iter().enumerate() {
        let path = path.display();
        mounts += &format!("    - {{name: v{number}, mountPath: {path}, readOnly: true}}\n");
        volumes +=
            &format!("  - {{name: v{number}, hostPath: {{path: {path}, type: Directory}}}}\n");
    }
    let command = [&tools.join("bin/python3") as &Path, Path::new("-u"), &program];
    Ok(format!(
        "{RIGHTS}{POD}    command: {command:?}\n    volumeMounts:\n{mounts}  volumes:\n{volumes}"
    ))
}

const RIGHTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: python}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: controller, namespace: python}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: controller, namespace: python}
rules:
- {apiGroups: [""], resources: [configmaps], verbs: [get, list, watch, patch]}
- {apiGroups: [""], resources: [services], verbs: [get, create, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: controller, namespace: python}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: controller}
subjects:
- {kind: ServiceAccount, name: controller, namespace: python}
"#;

const POD: &str = r#"---
apiVersion: v1
kind: Pod
metadata: {name: controller, namespace: python}
spec:
  serviceAccountName: controller
  terminationGracePeriodSeconds: 1
  containers:
  - name: controller
    image: localhost/host
"#;
