//! Whether packets of Services are sent on in the driver of the uplink (XDP), for people.

use std::fmt::Write as _;

use kernel::bpf::{FILE_SYSTEM, service_nat};
use model::{ClusterConfig, ServiceAcceleration, ServiceBackend};
use render::ebpf::node::UplinkProgram;
use serde::{Deserialize, Serialize};

use crate::report::Condition;

/// The Node's condition.
const CONDITION: &str = "FlatnetServiceAcceleration";

/// How the uplink serves what only passes the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AccelerationStatus {
    /// What is asked for.
    pub wanted: ServiceAcceleration,
    /// The device.
    pub uplink: String,
    /// Whether its driver has the program. There is no third way: in front of the stack (generic XDP)
    /// it would save nothing.
    pub native: bool,
    /// Why not, where it has it not.
    pub reason: String,
    /// Frames that were sent on so since the maps were made.
    pub sent: u64,
}

impl AccelerationStatus {
    /// What is known of it; `None` where it is not asked for, or nobody has tried yet.
    pub(crate) fn new(
        config: &ClusterConfig,
        uplink: &str,
        program: Option<&UplinkProgram>,
    ) -> Option<Self> {
        let wanted = config.service_acceleration;
        let is_wanted = wanted != ServiceAcceleration::Disabled
            && config.service_backend == ServiceBackend::Ebpf;
        let reason = match program.filter(|_| is_wanted)? {
            UplinkProgram::Absent => return None,
            UplinkProgram::Attached => String::new(),
            UplinkProgram::Refused(reason) => reason.clone(),
        };
        let native = reason.is_empty();
        Some(Self { wanted, uplink: uplink.to_owned(), native, reason, sent: 0 })
    }

    /// With the count of this moment.
    pub(crate) fn counted(self) -> Self {
        let sent = service_nat::frames_sent(FILE_SYSTEM.as_ref()).unwrap_or_else(|error| {
            tracing::warn!("{error}");
            None
        });
        Self { sent: sent.unwrap_or_default(), ..self }
    }

    /// The Node's condition.
    pub(crate) fn condition(&self) -> Condition {
        let uplink = &self.uplink;
        let (status, reason, message) = if self.native {
            let message =
                format!("packets of Services that pass {uplink} are sent on in its driver");
            ("True", "DriverSendsOn", message)
        } else {
            ("False", "StackSendsOn", self.reason.clone())
        };
        Condition { kind: CONDITION, status, reason, message }
    }

    /// The same as metrics.
    pub(crate) fn metrics(&self) -> String {
        let mut text = String::new();
        let name = "flatnet_service_acceleration";
        let help = "Whether packets of Services are sent on in the driver of the uplink (XDP).";
        let Self { uplink, wanted, .. } = self;
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        let labels = format!("uplink=\"{uplink}\",wanted=\"{wanted}\"");
        let _ = writeln!(text, "{name}{{{labels}}} {}", u8::from(self.native));
        let name = "flatnet_service_acceleration_frames_total";
        let help = "Frames that were sent on there.";
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
        let _ = writeln!(text, "{name}{{uplink=\"{uplink}\"}} {}", self.sent);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(
        acceleration: ServiceAcceleration,
        program: Option<&UplinkProgram>,
    ) -> Option<AccelerationStatus> {
        let config = ClusterConfig {
            service_backend: ServiceBackend::Ebpf,
            service_acceleration: acceleration,
            ..ClusterConfig::default()
        };
        AccelerationStatus::new(&config, "eth0", program)
    }

    #[test]
    fn who_asks_for_it_learns_whether_and_why_not() {
        use ServiceAcceleration::{BestEffort, Disabled, Native};
        let refused = UplinkProgram::Refused("eth0 is a veth".into());
        assert_eq!(status(Disabled, Some(&UplinkProgram::Absent)), None);
        assert_eq!(status(Native, None), None, "nobody knows yet");
        assert_eq!(status(Native, Some(&UplinkProgram::Absent)), None, "nobody has tried");
        for wanted in [Native, BestEffort] {
            let native = status(wanted, Some(&UplinkProgram::Attached)).expect("it is asked for");
            let condition = native.condition();
            assert_eq!((condition.status, condition.reason), ("True", "DriverSendsOn"));
            let not = status(wanted, Some(&refused)).expect("it is asked for");
            let condition = not.condition();
            assert_eq!((condition.status, condition.reason), ("False", "StackSendsOn"));
            assert_eq!(condition.message, "eth0 is a veth");
            let counted = AccelerationStatus { sent: 7, ..native };
            for (status, value) in [(&counted, 1), (&not, 0)] {
                let line = format!(
                    "flatnet_service_acceleration{{uplink=\"eth0\",wanted=\"{wanted}\"}} {value}"
                );
                assert!(status.metrics().lines().any(|own| own == line), "{line}");
            }
            let line = "flatnet_service_acceleration_frames_total{uplink=\"eth0\"} 7";
            assert!(counted.metrics().lines().any(|own| own == line), "{line}");
        }
    }

    #[test]
    fn another_backend_has_none() {
        let config = ClusterConfig {
            service_acceleration: ServiceAcceleration::Native,
            ..ClusterConfig::default()
        };
        let attached = Some(&UplinkProgram::Attached);
        assert_eq!(AccelerationStatus::new(&config, "eth0", attached), None);
    }
}
