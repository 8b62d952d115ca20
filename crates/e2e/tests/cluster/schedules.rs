//! CronJobs and PriorityClasses, as kubectl makes and shows them.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::cluster::Kubectl;
use e2e::eventually;
use serde_json::Value;

use super::kubectl::clients;
use super::world::{NAMESPACE, World};

/// A schedule of every minute begins within one; its pod ends soon behind.
const FIRST_RUN: Duration = Duration::from_secs(100);

fn tick(time_zone: &str) -> String {
    format!(
        r#"
apiVersion: batch/v1
kind: CronJob
metadata: {{name: tick, namespace: {NAMESPACE}}}
spec:
  schedule: "* * * * *"
  timeZone: {time_zone}
  concurrencyPolicy: Forbid
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
          containers:
          - {{name: tick, image: localhost/host, command: [sh, -c, "echo tick"]}}
"#
    )
}

pub fn cron_jobs(world: &World) -> Result<()> {
    let refused = world.cluster.apply(&tick("Europe/Atlantis"));
    let text = refused.map_or_else(|error| format!("{error:#}"), |text| format!("taken: {text}"));
    ensure!(text.contains("unknown time zone Europe/Atlantis"), "{text}");
    world.cluster.apply(&tick("Asia/Kolkata"))?;
    let shown = world.cluster.kubectl(&["get", "cronjobs", "-n", NAMESPACE])?;
    let wanted = "NAME SCHEDULE TIMEZONE SUSPEND ACTIVE LAST SCHEDULE AGE";
    let header: Vec<&str> = shown.lines().next().unwrap_or_default().split_whitespace().collect();
    ensure!(header.join(" ") == wanted, "{shown}");
    let newer = clients(world).into_iter().find(|client| *client == Kubectl::New);
    if let Some(client) = newer {
        by_hand(world, client)?;
    }
    eventually("the first Job of the schedule succeeded", FIRST_RUN, || {
        let status = world.cluster.get(NAMESPACE, "cronjob", "tick")?["status"].take();
        ensure!(status["lastScheduleTime"].is_string(), "{status}");
        let jobs = world.cluster.list(NAMESPACE, "jobs", "")?;
        let done = jobs.iter().find(|job| is_of_schedule(job) && job["status"]["succeeded"] == 1);
        ensure!(done.is_some(), "{jobs:?}");
        ensure!(status["lastSuccessfulTime"].is_string() && status["active"].is_null(), "{status}");
        Ok(())
    })?;
    if let Some(client) = newer {
        let described =
            world.cluster.kubectl_by(client, &["describe", "cronjob", "tick", "-n", NAMESPACE])?;
        for part in ["* * * * *", "Forbid", "Created job tick-", "Saw completed job: tick-"] {
            ensure!(described.contains(part), "{part:?} is missing in {described}");
        }
    }
    world.cluster.kubectl(&["delete", "cronjob", "tick", "-n", NAMESPACE])?;
    eventually("its Jobs and their pods are gone", Duration::from_secs(30), || {
        let jobs = world.cluster.list(NAMESPACE, "jobs", "")?;
        let left = jobs.iter().filter(|job| is_of_schedule(job)).count();
        ensure!(left == 0, "{left} Jobs are left");
        Ok(())
    })
}

/// What people do beside the schedule.
fn by_hand(world: &World, client: Kubectl) -> Result<()> {
    let run = |arguments: &str| {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        world.cluster.kubectl_by(client, &[arguments.as_slice(), &["-n", NAMESPACE]].concat())
    };
    run("create job once --from=cronjob/tick")?;
    run("wait job/once --for=condition=complete --timeout=60s")?;
    let log = run("logs job/once")?;
    ensure!(log.trim() == "tick", "{log}");
    let nightly = "create cronjob nightly --image=localhost/host --schedule=@daily";
    run(nightly)?;
    let cron = world.cluster.get(NAMESPACE, "cronjob", "nightly")?;
    ensure!(cron["spec"]["schedule"] == "@daily" && cron["spec"]["suspend"] == false, "{cron}");
    run("delete cronjob/nightly job/once")?;
    run("create priorityclass urgent --value=1000 --preemption-policy=Never")?;
    let overrides = r#"--overrides={"spec":{"priorityClassName":"urgent"}}"#;
    run(&format!("run first --image=localhost/host {overrides}"))?;
    let spec = world.cluster.get(NAMESPACE, "pod", "first")?["spec"].take();
    ensure!(spec["priority"] == 1_000 && spec["preemptionPolicy"] == "Never", "{spec}");
    let classes = run("get priorityclasses")?;
    for class in ["system-cluster-critical", "system-node-critical", "urgent"] {
        ensure!(classes.contains(class), "{class} is missing in {classes}");
    }
    run("delete pod/first --now")?;
    run("delete priorityclass/urgent").map(drop)
}

fn is_of_schedule(job: &Value) -> bool {
    let name = job["metadata"]["name"].as_str().unwrap_or_default();
    name.strip_prefix("tick-").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))
}
