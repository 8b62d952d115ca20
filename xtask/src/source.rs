//! Rust sources as the checks read them: without comments, literals and test modules; paths with
//! grouped imports spelled out; functions with their lengths.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// All files below a directory whose name ends so, sorted; build output is left out.
///
/// # Errors
/// When a directory cannot be read.
pub fn files(directory: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(directory) = open.pop() {
        let entries = std::fs::read_dir(&directory)
            .with_context(|| format!("cannot list {}", directory.display()))?;
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    open.push(path);
                }
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a file holds only tests: below `tests/`, or the body of a `mod tests;`.
pub fn is_test_file(name: &str) -> bool {
    name.contains("/tests/") || name.ends_with("/tests.rs")
}

/// The source with comments and the insides of literals turned into blanks; lines stay lines.
pub fn without_comments_and_literals(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out: Vec<u8> = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = match opaque_end(bytes, at) {
            Some(end) => end,
            None => {
                out.push(bytes[at]);
                at += 1;
                continue;
            }
        };
        let blank = |byte: &u8| if *byte == b'\n' { b'\n' } else { b' ' };
        out.extend(bytes[at..end].iter().map(blank));
        at = end;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Where the comment or literal that begins at `at` ends; `None` when none begins there.
fn opaque_end(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    let previous_is_word = at > 0 && is_word(bytes[at - 1]);
    if rest.starts_with(b"//") {
        return Some(at + rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()));
    }
    if rest.starts_with(b"/*") {
        return Some(at + block_comment_length(rest));
    }
    if rest[0] == b'"' {
        return Some(at + string_length(rest));
    }
    if !previous_is_word && (rest[0] == b'r' || rest.starts_with(b"br")) {
        let skip = if rest[0] == b'b' { 2 } else { 1 };
        return raw_string_length(&rest[skip..]).map(|length| at + skip + length);
    }
    if rest[0] == b'\'' {
        return char_length(rest).map(|length| at + length);
    }
    None
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn block_comment_length(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

fn string_length(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn raw_string_length(rest: &[u8]) -> Option<usize> {
    let hashes = rest.iter().take_while(|byte| **byte == b'#').count();
    if rest.get(hashes) != Some(&b'"') {
        return None;
    }
    let mut close = vec![b'"'];
    close.resize(hashes + 1, b'#');
    let body = &rest[hashes + 1..];
    let end = body.windows(close.len()).position(|window| window == close);
    Some(hashes + 1 + end.map_or(body.len(), |end| end + close.len()))
}

/// A character literal, as opposed to a lifetime.
fn char_length(rest: &[u8]) -> Option<usize> {
    if rest.get(1) == Some(&b'\\') {
        let end = rest.iter().skip(3).position(|byte| *byte == b'\'')?;
        return Some(end + 4);
    }
    let text = std::str::from_utf8(&rest[1..rest.len().min(6)])
        .or_else(|error| std::str::from_utf8(&rest[1..1 + error.valid_up_to()]))
        .ok()?;
    let length = text.chars().next()?.len_utf8();
    (rest.get(1 + length) == Some(&b'\'')).then_some(length + 2)
}

/// The source with the bodies of `#[cfg(test)]` modules turned into blanks. Takes and gives a
/// source without comments and literals.
pub fn without_test_modules(code: &str) -> String {
    let mut out = code.to_string();
    let mut from = 0;
    while let Some(found) = out[from..].find("#[cfg(test)]") {
        let start = from + found;
        let Some(end) = body_end(&out, start) else { break };
        let blanks: String =
            out[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        out.replace_range(start..end, &blanks);
        from = start + blanks.len();
    }
    out
}

/// Past the brace that closes the first body after `start`, or past the semicolon that comes
/// before any body.
fn body_end(code: &str, start: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (offset, byte) in code.as_bytes()[start..].iter().enumerate() {
        match byte {
            b';' if depth == 0 => return Some(start + offset + 1),
            b'{' => depth += 1,
            b'}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(start + offset + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// A path such as `std::fs::File`, and the line where it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathUse {
    /// The segments, joined by `::`.
    pub path: String,
    /// Counted from 1.
    pub line: usize,
}

/// All paths of the code, grouped imports spelled out: `use std::{fs, env};` gives both.
pub fn paths(code: &str) -> Vec<PathUse> {
    let mut found = Vec::new();
    for (line, text) in statements(code) {
        if let Some(tree) = text.trim_start().strip_prefix("use ") {
            expand(tree.trim().trim_end_matches(';'), "", line, &mut found);
        }
    }
    for (index, text) in code.lines().enumerate() {
        let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        for word in text.split(|c: char| !is_part(c)) {
            let path = word.trim_matches(':');
            if path.contains("::") {
                found.push(PathUse { path: path.to_string(), line: index + 1 });
            }
        }
    }
    found
}

/// Import statements with the line where each begins, visibility taken off.
fn statements(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut current: Option<(usize, String)> = None;
    for (index, line) in code.lines().enumerate() {
        let bare = line.trim_start().trim_start_matches("pub(crate) ").trim_start_matches("pub ");
        if current.is_none() && bare.starts_with("use ") {
            current = Some((index + 1, String::new()));
        }
        if let Some((_, text)) = &mut current {
            text.push_str(if text.is_empty() { bare } else { line.trim() });
            if line.contains(';') {
                found.extend(current.take());
            }
        }
    }
    found
}

fn expand(tree: &str, prefix: &str, line: usize, found: &mut Vec<PathUse>) {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        let leaf = tree.split(" as ").next().unwrap_or_default().trim();
        let path = if leaf == "self" {
            prefix.trim_end_matches("::").to_string()
        } else {
            format!("{prefix}{leaf}")
        };
        found.push(PathUse { path, line });
        return;
    };
    let prefix = format!("{prefix}{}", tree[..open].trim());
    let inner = tree[open + 1..].trim_end().trim_end_matches('}');
    // Only the brace that belongs to this group was meant: put inner groups' back.
    let missing = inner.matches('{').count().saturating_sub(inner.matches('}').count());
    let inner = format!("{inner}{}", "}".repeat(missing));
    let (mut depth, mut start) = (0_usize, 0);
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                expand(&inner[start..at], &prefix, line, found);
                start = at + 1;
            }
            _ => {}
        }
    }
    if !inner[start..].trim().is_empty() {
        expand(&inner[start..], &prefix, line, found);
    }
}

/// A function and its length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Lines from `fn` to the closing brace, both counted.
    pub lines: usize,
}

/// The functions with a body, in order. Takes a source without comments and literals.
pub fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    let bytes = code.as_bytes();
    for (at, _) in code.match_indices("fn ") {
        if at > 0 && is_word(bytes[at - 1]) {
            continue;
        }
        let name: String =
            code[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if name.is_empty() {
            continue;
        }
        let Some(end) = body_end(code, at) else { continue };
        if code[..end].ends_with('}') {
            let lines = code[at..end].matches('\n').count() + 1;
            found.push(Function { name, lines });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_become_blanks_and_lifetimes_stay() {
        let source = "let a = \"std::fs\"; // std::env\nlet b: &'a str = r#\"x\"y\"#; /* a /* b */ c */ let c = '\\'';";
        let code = without_comments_and_literals(source);
        assert!(!code.contains("std"), "{code}");
        assert!(code.contains("&'a str"), "{code}");
        assert!(!code.contains('x') && !code.contains(" b */"), "{code}");
        assert!(code.ends_with(';'), "{code}");
        assert_eq!(code.lines().count(), 2);
    }

    #[test]
    fn grouped_imports_are_spelled_out() {
        let code = "pub use std::{collections::BTreeMap, fs::{self, File},\n    net::TcpStream};\n";
        let all: Vec<String> = paths(code).into_iter().map(|found| found.path).collect();
        for expected in
            ["std::collections::BTreeMap", "std::fs", "std::fs::File", "std::net::TcpStream"]
        {
            assert!(all.iter().any(|path| path == expected), "{expected} in {all:?}");
        }
    }

    #[test]
    fn test_modules_do_not_count() {
        let code = "fn a() {}\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\nfn b() {}\n";
        let bare = without_test_modules(code);
        assert!(!bare.contains("std::fs"));
        assert_eq!(functions(&bare).len(), 2);
    }

    #[test]
    fn functions_are_measured() {
        let code = "fn a();\nfn b(x: fn(u8) -> u8) {\n  {\n  }\n}\n";
        assert_eq!(functions(code), [Function { name: "b".into(), lines: 4 }]);
    }
}
