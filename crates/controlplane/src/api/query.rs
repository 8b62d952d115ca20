//! URLs: path segments and query parameters, decoded.

use std::borrow::Cow;

use store::validate::FieldErrors;
use store::{FieldDirective, Status};

/// The longest name of a manager of fields, bytes; the real server's limit.
const MAX_MANAGER_BYTES: usize = 128;
/// Segments of a path; longer ones name nothing that exists, but what a proxied server makes up.
const MAX_SEGMENTS: usize = 64;

/// The decoded segments of a path. Empty ones are left out: clients send `/apis/` and `//`.
/// `None` when a segment is not UTF-8 or there are too many.
pub(super) fn segments(path: &str) -> Option<Vec<String>> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    if parts.len() > MAX_SEGMENTS {
        return None;
    }
    parts.into_iter().map(|part| decode(part, false).map(Cow::into_owned)).collect()
}

/// The query parameters of a request, in their order.
#[derive(Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads `name=value&…`. What is not UTF-8 is left out.
    pub fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).filter_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(name, true)?.into_owned(), decode(value, true)?.into_owned()))
        });
        Self(pairs.collect())
    }

    /// The first value of a parameter; empty when it is absent.
    pub fn get(&self, name: &str) -> &str {
        self.find(name).unwrap_or_default()
    }

    /// The first value of a parameter.
    pub fn find(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// All values of a parameter that may stand more than once.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// A boolean, as Go's API machinery reads it: present and neither `0` nor `false`.
    pub fn flag(&self, name: &str) -> bool {
        self.optional_flag(name).unwrap_or(false)
    }

    /// A boolean that may be absent.
    pub fn optional_flag(&self, name: &str) -> Option<bool> {
        self.find(name).map(|value| !matches!(value.to_ascii_lowercase().as_str(), "0" | "false"))
    }

    /// A whole number that may be absent.
    pub fn number(&self, name: &str) -> Result<Option<i64>, Status> {
        match self.find(name).filter(|value| !value.is_empty()) {
            None => Ok(None),
            Some(value) => value.parse().map(Some).map_err(|_| {
                Status::bad_request(format!(
                    "strconv.ParseInt: parsing {value:?}: invalid syntax (parameter {name})"
                ))
            }),
        }
    }

    /// As whom a write owns its fields: `fieldManager`, or the first word of the User-Agent.
    /// `kind` is that of the options.
    pub fn manager(&self, kind: &str, is_apply: bool, user_agent: &str) -> Result<String, Status> {
        let given = self.get("fieldManager");
        let is_shown = |character: &char| {
            *character == ' ' || !(character.is_control() || character.is_whitespace())
        };
        let mut errors = FieldErrors::default();
        if is_apply && given.is_empty() {
            errors.required("fieldManager", "is required for apply patch");
        }
        if !is_apply && self.find("force").is_some_and(|force| !force.is_empty()) {
            errors.forbidden("force", "may not be specified for non-apply patch");
        }
        if given.len() > MAX_MANAGER_BYTES {
            errors.too_long("fieldManager", MAX_MANAGER_BYTES);
        }
        if !given.chars().all(|character| is_shown(&character)) {
            errors.invalid("fieldManager", given, "should only contain printable characters");
        }
        if !errors.is_empty() {
            return Err(Status::invalid_kind("meta.k8s.io", kind, "", &errors));
        }
        if !given.is_empty() {
            return Ok(given.to_owned());
        }
        let program = user_agent.split('/').next().unwrap_or_default();
        let mut manager = String::new();
        for character in program.chars().filter(is_shown) {
            if manager.len() + character.len_utf8() > MAX_MANAGER_BYTES {
                break;
            }
            manager.push(character);
        }
        Ok(manager)
    }

    /// What happens to fields that the kind does not have. `kind` is that of the options.
    pub fn field_directive(&self, kind: &str) -> Result<FieldDirective, Status> {
        let text = self.get("fieldValidation");
        FieldDirective::from_query(text).ok_or_else(|| {
            let mut errors = FieldErrors::default();
            errors.unsupported("fieldValidation", text, &["Ignore", "Strict", "Warn"]);
            Status::invalid_kind("meta.k8s.io", kind, "", &errors)
        })
    }

    /// Whether nothing shall be stored. `kind` is that of the options, for the error.
    pub fn dry_run(&self, kind: &str) -> Result<bool, Status> {
        let mut dry_run = false;
        for value in self.all("dryRun").filter(|value| !value.is_empty()) {
            if value != "All" {
                let mut errors = FieldErrors::default();
                errors.unsupported("dryRun", value, &["All"]);
                return Err(Status::invalid_kind("meta.k8s.io", kind, "", &errors));
            }
            dry_run = true;
        }
        Ok(dry_run)
    }
}

/// Percent-decodes; in a query `+` is a space. `None` when the result is not UTF-8.
pub(super) fn decode(text: &str, plus_is_space: bool) -> Option<Cow<'_, str>> {
    if !text.contains(['%', '+']) {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' if plus_is_space => b' ',
            b'%' => {
                let (high, low) = (hex(rest.next()?)?, hex(rest.next()?)?);
                high * 16 + low
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

fn hex(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_decoded_and_empty_ones_left_out() {
        let cases = [
            ("/apis/", Some(vec!["apis"])),
            ("//api//v1", Some(vec!["api", "v1"])),
            ("/api/v1/nodes/a%2Fb", Some(vec!["api", "v1", "nodes", "a/b"])),
            ("/api/%ff", None),
            ("/api/%f", None),
        ];
        for (path, expected) in cases {
            let expected: Option<Vec<String>> =
                expected.map(|parts| parts.into_iter().map(str::to_owned).collect());
            assert_eq!(segments(path), expected, "{path}");
        }
    }

    #[test]
    fn a_path_without_end_is_refused() {
        assert_eq!(segments(&"/a".repeat(MAX_SEGMENTS + 1)), None);
    }

    #[test]
    fn parameters_are_read_as_the_real_server_reads_them() {
        let query = Query::parse("labelSelector=a%3Db+c&watch&follow=false&command=sh&command=-c");
        assert_eq!(query.get("labelSelector"), "a=b c");
        assert!(query.flag("watch") && !query.flag("follow") && !query.flag("stdin"));
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["sh", "-c"]);
        assert!(query.number("labelSelector").is_err());
    }

    #[test]
    fn a_manager_is_who_the_client_says_it_is() {
        let agent = "kubectl/v1.33 (linux/amd64)";
        let manager = |query: &str, is_apply: bool, agent: &str| {
            Query::parse(query).manager("PatchOptions", is_apply, agent)
        };
        assert_eq!(manager("fieldManager=me", true, agent), Ok("me".to_owned()));
        assert_eq!(manager("", false, agent), Ok("kubectl".to_owned()));
        assert_eq!(manager("", false, "a\u{7f}b"), Ok("ab".to_owned()));
        assert_eq!(manager("", false, &"é".repeat(100)), Ok("é".repeat(64)));
        let long = format!("fieldManager={}", "x".repeat(MAX_MANAGER_BYTES + 1));
        for (query, is_apply, expected) in [
            ("", true, "fieldManager: Required value: is required for apply patch"),
            ("force=true", false, "force: Forbidden: may not be specified for non-apply patch"),
            ("fieldManager=a%0Ab", true, "fieldManager: Invalid value: \"a\\nb\": should only"),
            (long.as_str(), true, "fieldManager: Too long: may not be more than 128 bytes"),
        ] {
            let refused = manager(query, is_apply, agent).expect_err("refused");
            assert_eq!(refused.code, 422);
            let message = format!("PatchOptions.meta.k8s.io \"\" is invalid: {expected}");
            assert!(refused.message.starts_with(&message), "{refused}");
        }
    }

    #[test]
    fn only_all_is_a_dry_run() {
        assert_eq!(Query::parse("dryRun=All").dry_run("CreateOptions"), Ok(true));
        assert_eq!(Query::parse("").dry_run("CreateOptions"), Ok(false));
        let refused = Query::parse("dryRun=Some").dry_run("CreateOptions").expect_err("refused");
        assert_eq!(refused.code, 422);
        assert!(refused.message.contains("dryRun: Unsupported value: \"Some\""), "{refused}");
    }
}
