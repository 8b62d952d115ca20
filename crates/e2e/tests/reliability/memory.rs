//! the kernel ends an agent for want of memory, in any moment of its life.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::eventually;
use e2e::processes::Held;

use super::backends::nothing_lost;
use super::kills::back;
use super::world::World;

/// What an agent may take beyond what it has when it begins, in KiB: it dies sooner or later. With
/// 1 MiB it lives.
const LIMITS_KIB: [u64; 5] = [32, 64, 128, 256, 512];
/// It dies within this time, on a busy machine too.
const DEATH: Duration = Duration::from_secs(20);
/// Nothing is left in its group after this.
const EMPTY: Duration = Duration::from_secs(10);
/// How long the load lasts.
const LOAD_S: u64 = 20;

/// Under load nothing is lost, and the next agent goes on.
pub fn ended(world: &World) -> Result<()> {
    back(world)?;
    let held = Held::hold(&world.cluster, &["node1"])?;
    let lost = nothing_lost(world, "agents out of memory", LOAD_S, || {
        for limit_kib in LIMITS_KIB {
            let group = Group::make(limit_kib)?;
            let mut agent = held.agent("node1")?;
            group.take_in(agent.pid)?;
            let succeeded =
                agent.ended(DEATH).with_context(|| format!("an agent lives with {limit_kib} KiB"));
            // Without it the group cannot go.
            agent.kill()?;
            let counted = group.out_of_memory();
            ensure!(!succeeded? && counted? > 0, "it ended otherwise, with {limit_kib} KiB");
        }
        Ok(())
    });
    drop(held);
    back(world)?;
    lost?;
    world.request()
}

/// A control group of the test's own, outside of the cluster's: cgroup v1 where that has the
/// controller, else v2.
struct Group {
    directory: PathBuf,
    is_v1: bool,
}

impl Group {
    fn make(limit_kib: u64) -> Result<Self> {
        let (v1, v2) = (Path::new("/sys/fs/cgroup/memory"), Path::new("/sys/fs/cgroup"));
        let is_v1 = v1.is_dir();
        let name = format!("out-of-memory-{}", std::process::id());
        let directory = if is_v1 { v1 } else { v2 }.join(name);
        fs::create_dir(&directory).with_context(|| directory.display().to_string())?;
        let group = Self { directory, is_v1 };
        let file = if is_v1 { "memory.limit_in_bytes" } else { "memory.max" };
        let limit = (limit_kib * 1024).to_string();
        fs::write(group.directory.join(file), limit).context("no controller for memory")?;
        Ok(group)
    }

    fn take_in(&self, pid: i64) -> Result<()> {
        Ok(fs::write(self.directory.join("cgroup.procs"), pid.to_string())?)
    }

    /// Processes that the kernel ended.
    fn out_of_memory(&self) -> Result<u64> {
        let file = if self.is_v1 { "memory.oom_control" } else { "memory.events" };
        let text = fs::read_to_string(self.directory.join(file))?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(count.with_context(|| text.clone())?.trim().parse()?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The kernel may still be at the end of what the agent had started.
        let removed = eventually("it is empty", EMPTY, || Ok(fs::remove_dir(&self.directory)?));
        if let Err(error) = removed {
            eprintln!("the group {} stays: {error:#}", self.directory.display());
        }
    }
}
