//! What the threads of the worker share: the cluster's zone, and one server a thread, which the
//! others look at between two batches of questions.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use anyhow::{Context, Result};
use dns::{Index, Server, Snapshot};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::lag::Lag;

/// Who asked, for the server.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Waiting {
    /// Over UDP: the socket's place in its thread, and the client.
    Udp {
        /// The place.
        socket: usize,
        /// The client.
        address: SocketAddr,
    },
    /// Over TCP: the connection's number in its thread.
    Tcp {
        /// The number.
        number: u64,
    },
}

/// All that is shared.
pub(crate) struct Shared {
    servers: Vec<Mutex<Server<Waiting>>>,
    index: RwLock<Option<Index>>,
    /// Configurations that were read, and those that were of no use.
    pub(crate) reloads: AtomicU64,
    pub(crate) failed_reloads: AtomicU64,
    /// How long changes of the zone take.
    pub(crate) lag: Lag,
    started: Instant,
    /// Readable once no more questions are taken.
    ending: EventFd,
}

impl Shared {
    pub(crate) fn new(servers: Vec<Server<Waiting>>) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            servers: servers.into_iter().map(Mutex::new).collect(),
            index: RwLock::new(None),
            reloads: AtomicU64::new(0),
            failed_reloads: AtomicU64::new(0),
            lag: Lag::default(),
            started: Instant::now(),
            ending: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        }))
    }

    /// Has all threads answer what they have, and end.
    pub(crate) fn end(&self) -> Result<()> {
        self.ending.write(1).context("ending the threads of the DNS worker")?;
        Ok(())
    }

    /// What tells a thread to end. It stays readable, for all of them.
    pub(crate) fn ending(&self) -> &EventFd {
        &self.ending
    }

    /// The server of a thread. Each thread holds its own for the length of a batch.
    pub(crate) fn server(&self, thread: usize) -> Option<MutexGuard<'_, Server<Waiting>>> {
        let server = self.servers.get(thread)?;
        Some(server.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The server that the kernel gives a client to, by the last four octets of its address.
    pub(crate) fn server_of(&self, client: IpAddr) -> Option<MutexGuard<'_, Server<Waiting>>> {
        let last = match client {
            IpAddr::V4(address) => address.to_bits(),
            IpAddr::V6(address) => address.to_bits() as u32,
        };
        let thread = (last as usize).checked_rem(self.servers.len())?;
        self.server(thread)
    }

    /// All servers, one after the other.
    pub(crate) fn servers(&self) -> impl Iterator<Item = MutexGuard<'_, Server<Waiting>>> {
        (0..self.servers.len()).filter_map(|thread| self.server(thread))
    }

    /// The cluster's zone, to answer from.
    pub(crate) fn index(&self) -> RwLockReadGuard<'_, Option<Index>> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cluster's zone, to change it.
    pub(crate) fn index_mut(&self) -> RwLockWriteGuard<'_, Option<Index>> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What all threads know.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut sum = Snapshot::default();
        for server in self.servers() {
            let snapshot = server.snapshot();
            drop(server);
            sum.add(&snapshot);
        }
        sum
    }

    /// The metrics of all threads.
    pub(crate) fn metrics(&self) -> String {
        let mut text = self.snapshot().metrics();
        text.push_str(&self.lag.metrics());
        for (name, help, count) in [
            ("flatnet_dns_reloads_total", "Configurations taken.", &self.reloads),
            ("coredns_reload_failed_total", "Configurations refused.", &self.failed_reloads),
        ] {
            let count = count.load(Ordering::Relaxed);
            text.push_str(&format!(
                "# HELP {name} {help}\n# TYPE {name} counter\n{name} {count}\n"
            ));
        }
        text
    }

    /// The time since the start, in microseconds.
    pub(crate) fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}
