//! The worker's first thread: the cluster's zone from the agent, and the configuration.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use dns::feed::{News, Plain};
use dns::{Config, Rules};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::feed::{self, Feed, ZoneFile};
use crate::keeper::Ending;
use crate::lag;
use crate::random::Randomness;
use crate::shared::Shared;

/// How often the file of the configuration is looked at, in milliseconds.
const CONFIG_INTERVAL_MS: u64 = 500;

/// The file of the configuration, and what was read from it last. A ConfigMap's file changes by
/// the target of a link above it, so that the content alone says whether it changed.
pub(crate) struct ConfigFile {
    path: Option<PathBuf>,
    text: String,
}

impl ConfigFile {
    /// Reads it. A file that is not there counts as empty.
    ///
    /// # Errors
    /// When it is there and wrong: a server that starts does not guess.
    pub(crate) fn load(path: Option<&Path>) -> Result<(Self, Config)> {
        let mut file = Self { path: path.map(Path::to_owned), text: String::new() };
        let text = file.read()?.unwrap_or_default();
        let config = Config::parse(&text).with_context(|| file.name())?;
        file.text = text;
        Ok((file, config))
    }

    /// A configuration, if the file says another than before.
    fn changed(&mut self) -> Option<Result<Config>> {
        let text = match self.read() {
            Ok(text) => text.unwrap_or_default(),
            Err(error) => return Some(Err(error)),
        };
        if text == self.text {
            return None;
        }
        self.text = text;
        Some(Config::parse(&self.text).with_context(|| self.name()))
    }

    fn read(&self) -> Result<Option<String>> {
        let Some(path) = &self.path else { return Ok(None) };
        match std::fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| self.name()),
            Ok(data) if data.len() > dns::config::MAX_CONFIG_OCTETS as u64 => {
                bail!("{}: {} bytes are too many", self.name(), data.len())
            }
            Ok(_) => {}
        }
        std::fs::read_to_string(path).map(Some).with_context(|| self.name())
    }

    fn name(&self) -> String {
        let path = self.path.as_deref().unwrap_or(Path::new(""));
        format!("the DNS configuration {}", path.display())
    }
}

/// What the first thread works with.
pub(crate) struct Control {
    pub(crate) shared: Arc<Shared>,
    pub(crate) feed: Feed,
    pub(crate) zone_file: Option<ZoneFile>,
    pub(crate) config_file: ConfigFile,
    pub(crate) config: Arc<Config>,
    /// Where questions come to.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// The cluster's domain, once it was told.
    pub(crate) domain: Option<String>,
    pub(crate) rules: Rules,
    pub(crate) host: Vec<SocketAddr>,
    pub(crate) randomness: Randomness,
}

impl Control {
    /// Serves the zone that was kept, if there is one.
    pub(crate) fn load_zone(&mut self) {
        let exposure = self.config.kubernetes.exposure();
        if let Some(index) = self.zone_file.as_ref().and_then(|file| file.load(&exposure)) {
            self.take_in(News::Zone(Box::new(index)));
        }
    }

    /// Works until the end is asked for.
    pub(crate) fn run(&mut self, ending: &Ending) -> Result<()> {
        let (mut config_at_ms, mut memory_at_ms) = (0, 0);
        let mut memory = memory::Keeper::default();
        while !ending.is_asked_for()? {
            let now_ms = self.shared.now_us() / 1000;
            if now_ms >= config_at_ms {
                config_at_ms = now_ms + CONFIG_INTERVAL_MS;
                self.reload_when_changed();
            }
            if now_ms >= memory_at_ms {
                memory_at_ms = now_ms + memory.look().as_millis() as u64;
            }
            self.feed.connect(now_ms);
            self.read_feed(now_ms);
            let feed_ms = self.feed.next_deadline_ms().unwrap_or(config_at_ms);
            let deadline_ms = feed_ms.min(config_at_ms).min(memory_at_ms);
            let wait_ms = deadline_ms.saturating_sub(self.shared.now_us() / 1000);
            let timeout = PollTimeout::try_from(wait_ms).unwrap_or(PollTimeout::MAX);
            let feed = self.feed.socket().map(AsFd::as_fd);
            let mut sockets: Vec<PollFd<'_>> = [ending.as_fd()]
                .into_iter()
                .chain(feed)
                .map(|socket| PollFd::new(socket, PollFlags::POLLIN))
                .collect();
            match poll(&mut sockets, timeout) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error).context("waiting for the agent"),
            }
        }
        Ok(())
    }

    fn read_feed(&mut self, now_ms: u64) {
        while let Some(received) = self.feed.next(now_ms) {
            let is_outgrown = self.zone_file.as_mut().is_some_and(|file| file.keep(&received));
            match received.news {
                None => {}
                Some(News::Other(domain)) => self.ask_for_another(domain, now_ms),
                Some(news) => {
                    let is_zone = matches!(news, News::Zone(_));
                    self.take_in(news);
                    if is_zone {
                        self.say_how(now_ms);
                    }
                }
            }
            if is_outgrown {
                self.feed.disconnect(now_ms);
            }
        }
    }

    /// Serves a zone, or its changes, from now on.
    fn take_in(&mut self, news: News) {
        if let News::Zone(index) = &news {
            let (domain, services) = (&index.settings().domain, index.services());
            tracing::info!("serving {domain} with {services} Services");
            self.domain = Some(domain.clone());
        }
        let heard = match &news {
            News::Zone(_) | News::Other(_) => None,
            News::Changes { heard_us, changes, .. } => Some((*heard_us, lag::kinds(changes))),
        };
        let is_zone = matches!(news, News::Zone(_));
        // Questions wait while the zone is taken in, and not while another goes.
        let replaced = feed::take(news, &mut self.shared.index_mut());
        drop(replaced);
        if is_zone {
            self.gather_zone();
        }
        if let Some((heard_us, kinds)) = heard {
            self.shared.lag.record_us(&kinds, unix_us().saturating_sub(heard_us));
        }
    }

    /// Has the zone lie in one piece. It was made between what its frames were read into, and a
    /// copy made here would lie in the holes of that: what another thread makes lies apart. Where
    /// the machine has no thread for it, the zone stays as it is.
    fn gather_zone(&self) {
        let copy = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("dns-zone".into());
            let copying = thread.spawn_scoped(scope, || self.shared.index().clone());
            copying.ok()?.join().ok()?
        });
        if let Some(copy) = copy {
            let scattered = self.shared.index_mut().replace(copy);
            drop(scattered);
        }
    }

    /// The zone that comes was made before the agent heard of this worker's choice of names, or by
    /// another worker's.
    fn ask_for_another(&mut self, domain: String, now_ms: u64) {
        self.domain = Some(domain);
        if self.feed.has_said() {
            tracing::warn!(
                "the agent tells of names by another choice than this worker's configuration \
                 (namespaces, namespace_labels, labels, noendpoints, endpoint_pod_names): names stay \
                 as they are until it tells of others. Is another DNS worker on this node, with \
                 another configuration, or is the agent older than these options?"
            );
        } else {
            self.say_how(now_ms);
        }
    }

    /// Tells the agent what shall have names, and how plain questions for their addresses are
    /// answered.
    fn say_how(&mut self, now_ms: u64) {
        if let Some(domain) = &self.domain {
            let plain = Plain::new(&self.config, domain, self.addresses.clone());
            self.feed.say(&plain, now_ms);
        }
    }

    /// Takes another configuration between two batches of questions: none is lost.
    fn reload_when_changed(&mut self) {
        let Some(config) = self.config_file.changed() else { return };
        match config {
            Ok(config) => {
                let config = Arc::new(config);
                for mut server in self.shared.servers() {
                    let randomness = &mut self.randomness;
                    let rules = self.rules.clone();
                    server.configure(config.clone(), rules, &self.host, &mut || randomness.next());
                }
                self.feed.want(config.kubernetes.exposure());
                self.config = config;
                self.say_how(self.shared.now_us() / 1000);
                self.shared.reloads.fetch_add(1, Ordering::Relaxed);
                tracing::info!("{} was read anew", self.config_file.name());
            }
            Err(error) => {
                self.shared.failed_reloads.fetch_add(1, Ordering::Relaxed);
                tracing::error!("{error:#}; the configuration before it stays in force");
            }
        }
    }
}

fn unix_us() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
}
