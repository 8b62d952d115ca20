//! What a node's connection tracking is set to. Names and defaults are kube-proxy's
//! (`KubeProxyConntrackConfiguration` of kubeproxy.config.k8s.io/v1alpha1).

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Connection tracking of each node. A time or a number that is 0 leaves what the node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ConntrackConfig {
    /// Flows that are tracked at the same time, for each processor of the machine
    /// (`--conntrack-max-per-core`).
    pub max_per_core: u32,
    /// As many at least, however few processors there are (`--conntrack-min`).
    pub min: u32,
    /// How long an idle TCP connection is remembered (`--conntrack-tcp-timeout-established`).
    pub tcp_established_timeout: Timeout,
    /// How long one that only one side has closed (`--conntrack-tcp-timeout-close-wait`).
    pub tcp_close_wait_timeout: Timeout,
    /// Takes segments out of the window for valid ones (`--conntrack-tcp-be-liberal`). With
    /// Services in eBPF it is so in any case.
    pub tcp_be_liberal: bool,
    /// How long a UDP flow that nobody has answered (`--conntrack-udp-timeout`).
    pub udp_timeout: Timeout,
    /// How long one that was answered (`--conntrack-udp-timeout-stream`).
    pub udp_stream_timeout: Timeout,
}

impl Default for ConntrackConfig {
    fn default() -> Self {
        Self {
            max_per_core: 32_768,
            min: 131_072,
            tcp_established_timeout: Timeout(24 * 3600),
            tcp_close_wait_timeout: Timeout(3600),
            tcp_be_liberal: false,
            udp_timeout: Timeout(0),
            udp_stream_timeout: Timeout(0),
        }
    }
}

impl ConntrackConfig {
    /// How many flows a machine with so many processors shall track at least; `None`: as it is.
    pub fn entries_min(&self, processors: u32) -> Option<u32> {
        let wanted = self.max_per_core.saturating_mul(processors).max(self.min);
        (self.max_per_core > 0).then_some(wanted.min(ENTRIES_MAX))
    }
}

/// The kernel keeps the number in an `int`.
const ENTRIES_MAX: u32 = i32::MAX as u32;

/// A time in seconds, written as Go writes durations: `24h0m0s`, `1h`, `90s`; `0` is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Timeout(u32);

/// The kernel keeps a time in jiffies, a thousand a second at most, in an `int`.
const TIMEOUT_MAX_S: u32 = i32::MAX as u32 / 1000;

impl Timeout {
    /// In seconds; `None` for 0.
    pub fn seconds(self) -> Option<u32> {
        (self.0 > 0).then_some(self.0)
    }
}

/// Why a text is no time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no time: write whole hours, minutes and seconds, such as 24h, 1h30m or 90s, not \
     more than 596h"
)]
pub struct TimeoutError {
    text: String,
}

impl FromStr for Timeout {
    type Err = TimeoutError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let seconds = if text == "0" { Some(0) } else { seconds_of(text) };
        let seconds = seconds.filter(|&seconds| seconds <= TIMEOUT_MAX_S);
        seconds.map(Self).ok_or_else(|| TimeoutError { text: text.into() })
    }
}

/// Numbers with units, the largest unit first.
fn seconds_of(text: &str) -> Option<u32> {
    let mut rest = text;
    let mut seconds: u32 = 0;
    for (unit, length_s) in [('h', 3600), ('m', 60), ('s', 1)] {
        if let Some((number, after)) = rest.split_once(unit) {
            let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
            let number: Result<u32, ParseIntError> = number.parse();
            let number = number.ok().filter(|_| is_number)?;
            seconds = seconds.checked_add(number.checked_mul(length_s)?)?;
            rest = after;
        }
    }
    (!text.is_empty() && rest.is_empty()).then_some(seconds)
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(seconds) = self;
        write!(f, "{}h{}m{}s", seconds / 3600, seconds / 60 % 60, seconds % 60)
    }
}

impl From<Timeout> for String {
    fn from(timeout: Timeout) -> Self {
        timeout.to_string()
    }
}

impl TryFrom<String> for Timeout {
    type Error = TimeoutError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_go_writes_them() {
        let rows = [
            ("24h0m0s", 86_400),
            ("24h", 86_400),
            ("1h30m", 5_400),
            ("90s", 90),
            ("5m1s", 301),
            ("0s", 0),
            ("0", 0),
            ("596h", 2_145_600),
        ];
        for (text, seconds) in rows {
            let read: Timeout = text.parse().expect(text);
            assert_eq!(read, Timeout(seconds), "{text}");
            assert_eq!(read.to_string().parse(), Ok(read));
            assert_eq!(read.seconds().unwrap_or_default(), seconds);
        }
        for text in
            ["", "90", "-1s", "+1s", "1.5h", "1d", "10s1h", "h", "1h 5m", "597h", "9999999h"]
        {
            let error = text.parse::<Timeout>().expect_err(text);
            assert!(error.to_string().contains("24h"), "{error}");
        }
    }

    #[test]
    fn entries_grow_with_processors_from_a_least_number() {
        let default = ConntrackConfig::default();
        let rows = [(1, 131_072), (4, 131_072), (8, 262_144), (u32::MAX, ENTRIES_MAX)];
        for (processors, entries) in rows {
            assert_eq!(default.entries_min(processors), Some(entries));
        }
        let none = ConntrackConfig { max_per_core: 0, ..default };
        assert_eq!(none.entries_min(64), None, "also without a least number, as kube-proxy");
    }

    #[test]
    fn a_section_is_read_with_its_defaults_and_a_wrong_name_is_refused() {
        let text = r#"{"tcpCloseWaitTimeout": "2h", "udpTimeout": "10s"}"#;
        let read: ConntrackConfig = serde_json::from_str(text).expect("read");
        let expected = ConntrackConfig {
            tcp_close_wait_timeout: Timeout(7200),
            udp_timeout: Timeout(10),
            ..ConntrackConfig::default()
        };
        assert_eq!(read, expected);
        let written = serde_json::to_string(&read).expect("written");
        assert_eq!(serde_json::from_str::<ConntrackConfig>(&written).expect("read"), read);
        assert!(serde_json::from_str::<ConntrackConfig>(r#"{"maxPerCpu": 1}"#).is_err());
    }
}
