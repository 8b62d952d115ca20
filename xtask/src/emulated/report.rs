//! What the emulated machine says of its tests: lines of the test harness between marks of the
//! machine's first process.

use std::collections::BTreeMap;

/// What one test program said.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Section {
    /// Each test and whether it passed.
    pub tests: BTreeMap<String, bool>,
    /// All that the program printed.
    pub output: String,
    /// The exit code; none when the machine stopped before the program did.
    pub exit_code: Option<i32>,
}

impl Section {
    /// Whether the program ended well and each of its tests passed.
    pub fn has_passed(&self) -> bool {
        self.exit_code == Some(0) && self.tests.values().all(|passed| *passed)
    }
}

/// Splits what came over the serial line by `package/test`.
pub fn read(text: &str) -> BTreeMap<String, Section> {
    let mut sections = BTreeMap::new();
    let mut current: Option<(String, Section)> = None;
    for line in text.lines().map(|line| line.trim_end_matches('\r')) {
        if let Some(name) = line.strip_prefix("@@begin ") {
            sections.extend(current.replace((name.to_owned(), Section::default())));
            continue;
        }
        let Some((name, section)) = &mut current else { continue };
        // A program that is killed leaves its last line open.
        if let Some((rest, end)) = line.split_once("@@end ") {
            section.output.push_str(rest);
            let code = end.strip_prefix(name.as_str()).and_then(|code| code.trim().parse().ok());
            section.exit_code = code;
            sections.extend(current.take());
            continue;
        }
        section.output.push_str(line);
        section.output.push('\n');
        section.tests.extend(test_line(line));
    }
    sections.extend(current);
    sections
}

/// `test name ... ok` as the harness prints it; ignored tests are no tests.
fn test_line(line: &str) -> Option<(String, bool)> {
    let (name, verdict) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let name = name.strip_suffix(" - should panic").unwrap_or(name);
    match verdict {
        "ok" => Some((name.to_owned(), true)),
        "FAILED" => Some((name.to_owned(), false)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "noise\r\n@@begin kernel/nft\r\nrunning 2 tests\r\ntest a ... ok\r\n\
        test m::b ... FAILED\r\ntest c ... ignored\r\n@@end kernel/nft 101\r\n\
        @@begin cni/pods\r\ntest d ... ok\r\ntest e ... @@end cni/pods 137\r\n\
        @@begin kernel/bpf\r\ntest f ... ok\r\n";

    #[test]
    fn each_program_is_read_with_its_tests_and_how_it_ended() {
        let sections = read(TEXT);
        let of = |name: &str| {
            let section = &sections[name];
            let tests: Vec<(&str, bool)> =
                section.tests.iter().map(|(name, passed)| (name.as_str(), *passed)).collect();
            (tests, section.exit_code, section.has_passed())
        };
        assert_eq!(of("kernel/nft"), (vec![("a", true), ("m::b", false)], Some(101), false));
        assert_eq!(of("cni/pods"), (vec![("d", true)], Some(137), false));
        assert_eq!(of("kernel/bpf"), (vec![("f", true)], None, false), "the machine stopped");
        assert!(sections["cni/pods"].output.ends_with("test e ... "));
    }

    #[test]
    fn a_program_passes_only_with_all_its_tests_and_its_exit_code() {
        let passing = "@@begin x/y\ntest a ... ok\n@@end x/y 0\n";
        assert!(read(passing)["x/y"].has_passed());
        assert!(!read(&passing.replace("y 0", "y 1"))["x/y"].has_passed());
        assert!(!read(&passing.replace("ok", "FAILED"))["x/y"].has_passed());
    }
}
