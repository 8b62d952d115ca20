//! What a worker is started with: values, and the same as words of a command line.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use dns::Name;

/// What the program says of its words.
pub const USAGE: &str = "\
Usage: flatnet-dnsworker --socket FD... --feed PATH [--upstream ADDRESS:PORT]...
                         [--host-search NAME]... [--upstream-netns PATH] [--cache-file PATH]
                         [--config PATH] [--control PATH] [--restarts]
       flatnet-dnsworker --is-ready PATH

  --socket          an inherited UDP or listening TCP socket at the DNS address; repeat
  --feed            the agent's unix socket that zones come from
  --upstream        a server for names outside the cluster, the preferred first; repeat
  --host-search     a domain of the node's own search path; repeat
  --upstream-netns  the network namespace that upstream servers are reached from
  --cache-file      keeps the newest zone for a restarted worker
  --config          the configuration
  --control         the unix socket to answer root's questions at
  --restarts        keeps the sockets, and works in a child that is started again when it ends
  --is-ready        whether the worker at this control socket is of this container and knows a zone
";

/// The word that asks whether a worker is ready.
pub const IS_READY: &str = "--is-ready";

/// What a worker needs to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Inherited sockets, bound to the DNS addresses: datagram sockets, and stream sockets that
    /// listen, in any order. See [`crate::listen`].
    pub sockets: Vec<RawFd>,
    /// The host's servers for names outside the cluster, the preferred first. None, and none in
    /// the configuration: such questions are refused.
    pub upstreams: Vec<SocketAddr>,
    /// The domains behind the cluster's own in the search paths of pods: the node's.
    pub host_search: Vec<Name>,
    /// The network namespace that upstream servers are reached from, such as
    /// `/proc/self/fd/5` for an inherited handle. `None`: the one that the worker is started in.
    pub upstream_network_namespace: Option<PathBuf>,
    /// The unix socket where the agent serves zones. It need not exist yet.
    pub feed_socket: PathBuf,
    /// The file that keeps the newest zone; its directory is made, mode 0700. `None`: a restarted
    /// worker knows nothing until the agent feeds it.
    pub cache_file: Option<PathBuf>,
    /// The configuration ([`dns::Config`]); it may be absent, appear and change at any time.
    pub config_file: Option<PathBuf>,
    /// The unix socket to answer root's questions at.
    pub control_socket: Option<PathBuf>,
    /// Whether the process keeps the sockets and works in a child, where its starter does not.
    pub restarts: bool,
}

impl Options {
    /// The words that [`Options::read`] reads this from.
    pub fn words(&self) -> Vec<OsString> {
        let mut words = Vec::new();
        let mut add = |flag: &str, value: OsString| words.extend([flag.into(), value]);
        for socket in &self.sockets {
            add("--socket", socket.to_string().into());
        }
        for upstream in &self.upstreams {
            add("--upstream", upstream.to_string().into());
        }
        for domain in &self.host_search {
            add("--host-search", domain.to_string().into());
        }
        add("--feed", self.feed_socket.clone().into());
        for (flag, path) in [
            ("--upstream-netns", &self.upstream_network_namespace),
            ("--cache-file", &self.cache_file),
            ("--config", &self.config_file),
            ("--control", &self.control_socket),
        ] {
            if let Some(path) = path {
                add(flag, path.clone().into());
            }
        }
        words.extend(self.restarts.then(|| "--restarts".into()));
        words
    }

    /// Reads a command line without the program's name.
    ///
    /// # Errors
    /// Naming the word that is wrong, with [`USAGE`].
    pub fn read(words: impl IntoIterator<Item = OsString>) -> Result<Self> {
        let mut words = words.into_iter();
        let mut options = Self::default();
        while let Some(word) = words.next() {
            let word = text(word)?;
            let mut value =
                || words.next().with_context(|| format!("{word} wants a value\n{USAGE}"));
            match word.as_str() {
                "--socket" => options.sockets.push(text(value()?)?.parse().context("--socket")?),
                "--upstream" => {
                    options.upstreams.push(text(value()?)?.parse().context("--upstream")?);
                }
                "--host-search" => {
                    options.host_search.push(text(value()?)?.parse().context("--host-search")?);
                }
                "--upstream-netns" => options.upstream_network_namespace = Some(value()?.into()),
                "--feed" => options.feed_socket = value()?.into(),
                "--config" => options.config_file = Some(value()?.into()),
                "--control" => options.control_socket = Some(value()?.into()),
                "--cache-file" => options.cache_file = Some(value()?.into()),
                "--restarts" => options.restarts = true,
                _ => bail!("there is no option {word}\n{USAGE}"),
            }
        }
        if options.feed_socket.as_os_str().is_empty() {
            bail!("--feed is missing\n{USAGE}");
        }
        Ok(options)
    }
}

fn text(word: OsString) -> Result<String> {
    word.into_string().ok().with_context(|| format!("a word is no text\n{USAGE}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_they_are_written() {
        let all = Options {
            sockets: vec![4, 5],
            upstreams: vec!["192.0.2.53:53".parse().expect("a server")],
            host_search: vec!["corp.example".parse().expect("a name")],
            upstream_network_namespace: Some("/proc/self/fd/3".into()),
            feed_socket: "/run/feed".into(),
            cache_file: Some("/var/zone.json".into()),
            config_file: Some("/etc/dns.yaml".into()),
            control_socket: Some("/run/control".into()),
            restarts: true,
        };
        let least = Options { feed_socket: "/run/feed".into(), ..Options::default() };
        for options in [all, least] {
            assert_eq!(Options::read(options.words()).expect("read"), options);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let rows: &[(&[&str], &str)] = &[
            (&[], "--feed is missing"),
            (&["--feed", "f", "--sockets", "4"], "there is no option --sockets"),
            (&["--feed", "f", "--socket"], "--socket wants a value"),
            (&["--feed", "f", "--socket", "four"], "--socket"),
            (&["--feed", "f", "--upstream", "192.0.2.53"], "--upstream"),
        ];
        for (words, expected) in rows {
            let error = Options::read(words.iter().map(OsString::from)).expect_err("refused");
            assert!(format!("{error:#}").contains(expected), "{words:?}: {error:#}");
        }
    }
}
