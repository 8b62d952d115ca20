//! A node whose Services are chains of iptables, in one of its variants.

use std::collections::BTreeSet;
use std::io::Write;
use std::ops::{Deref, DerefMut};
use std::process::{Command, Stdio};

use kernel::iptables::{IptablesDriver, Variant};
use kernel::nft::NftDriver;
use model::{Family, NamespacedName};
use plan::services::ServicePlan;
use render::iptables::{IptablesObserved, IptablesOp, IptablesProgram};
use render::nft;

use crate::common::Scene;

/// Seconds that a program of these tests may take.
const PROGRAM_TIME_MAX_S: &str = "20";
/// Every way to have the same rules.
pub const EACH: [(Variant, Family); 4] = [
    (Variant::Nft, Family::V4),
    (Variant::Legacy, Family::V4),
    (Variant::Nft, Family::V6),
    (Variant::Legacy, Family::V6),
];

pub struct Lab {
    pub scene: Scene,
    pub variant: Variant,
}

impl Deref for Lab {
    type Target = Scene;

    fn deref(&self) -> &Scene {
        &self.scene
    }
}

impl DerefMut for Lab {
    fn deref_mut(&mut self) -> &mut Scene {
        &mut self.scene
    }
}

impl Lab {
    pub fn new(variant: Variant, family: Family) -> Self {
        Self { scene: Scene::new(family), variant }
    }

    pub fn program(&self) -> IptablesProgram {
        render::iptables::render(&self.desired, &self.config, &self.facts)
    }

    /// A driver in the node's namespace.
    pub fn driver(&self) -> IptablesDriver {
        self.node.run(|| IptablesDriver::with(self.variant).expect("a driver")).expect("node")
    }

    /// Brings the node's rules to what is desired; answers the ops that it took.
    pub fn converge(&self, driver: &mut IptablesDriver) -> Vec<IptablesOp> {
        self.bring(driver, &self.program())
    }

    pub fn bring(&self, driver: &mut IptablesDriver, program: &IptablesProgram) -> Vec<IptablesOp> {
        let mut believed = driver.observe().expect("observe");
        let ops = render::iptables::diff(program, &believed);
        for op in &ops {
            driver.apply(op).unwrap_or_else(|error| panic!("{error}"));
            believed.apply(op).expect("the model of the kernel agrees");
        }
        assert_eq!(driver.observe().expect("observe"), believed, "{:?}", self.variant);
        ops
    }

    /// Sets a Service and its rules, with those of the nftables table that refuses beside them.
    pub fn serve(&mut self, name: &str, plan: ServicePlan) {
        self.desired.services.insert(NamespacedName::new("shop", name), plan);
        self.converge(&mut self.driver());
        self.refuse();
    }

    /// Brings the nftables table to what is desired.
    pub fn refuse(&self) {
        let rules = nft::render_as(nft::Role::Beside, &self.desired, &self.config, &self.facts);
        let refuse = || {
            let mut driver = NftDriver::open().expect("nftables");
            let present = driver.observe().expect("observe");
            for op in nft::diff(&rules, &present) {
                driver.apply(&op).unwrap_or_else(|error| panic!("{error}"));
            }
        };
        self.node.run(refuse).expect("node");
    }

    /// Runs `iptables` of the variant in the node's namespace.
    pub fn run(&self, arguments: &str) -> String {
        self.run_program(&self.program_name(), arguments)
    }

    /// Rules and chains without counters, ours and others'.
    pub fn saved(&self) -> BTreeSet<String> {
        let text = ["nat", "filter"].map(|table| self.run(&format!("-t {table} -S"))).concat();
        text.lines().map(str::to_string).collect()
    }

    /// Gives `iptables-restore` of the variant a text.
    pub fn restore(&self, text: &str) {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        writer.write_all(text.as_bytes()).expect("a short text");
        drop(writer);
        let program = format!("{}-restore", self.program_name());
        self.run_program_with(&program, "--noflush", reader.into());
    }

    fn program_name(&self) -> String {
        let family = if self.family == Family::V4 { "iptables" } else { "ip6tables" };
        let variant = if self.variant == Variant::Nft { "nft" } else { "legacy" };
        format!("{family}-{variant}")
    }

    fn run_program(&self, program: &str, arguments: &str) -> String {
        self.run_program_with(program, arguments, Stdio::null())
    }

    fn run_program_with(&self, program: &str, arguments: &str, input: Stdio) -> String {
        let arguments = arguments.split(' ');
        let run = || {
            let mut command = Command::new("timeout");
            command.args([PROGRAM_TIME_MAX_S, program, "-w"]).args(arguments);
            command.stdin(input).output()
        };
        let output = self.node.run(run).expect("node").expect("the program runs");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program}: {complaint}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn observe(&self) -> IptablesObserved {
        self.driver().observe().expect("observe")
    }
}
