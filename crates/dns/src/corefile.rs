//! Translates a Corefile, the configuration of CoreDNS, and lists what it could not carry over.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::config::{NO_KUBERNETES_OPTIONS, Target};

/// The largest Corefile, in octets.
pub const MAX_COREFILE_OCTETS: usize = 1 << 20;

/// What came of a Corefile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// The configuration, as YAML.
    pub yaml: String,
    /// What has no place in it, and means something: a line each.
    pub lost: Vec<String>,
    /// What needs no place in it, since it is done in any case: a line each.
    pub needless: Vec<String>,
}

/// A directive with its arguments and its block.
#[derive(Clone, Debug, Default)]
struct Directive {
    line: usize,
    words: Vec<String>,
    block: Vec<Directive>,
}

impl Directive {
    fn name(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    fn arguments(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }

    fn argument(&self, index: usize) -> &str {
        self.arguments().get(index).map_or("", String::as_str)
    }
}

/// Translates a Corefile.
///
/// # Errors
/// When it is none: a block that does not end, or text that is too long.
pub fn import(text: &str) -> Result<Imported, String> {
    if text.len() > MAX_COREFILE_OCTETS {
        return Err(format!("more than {MAX_COREFILE_OCTETS} octets are no Corefile"));
    }
    let tokens = tokens(text)?;
    let mut position = 0;
    let blocks = directives(&tokens, &mut position, 0)?;
    let mut import = Import::default();
    for block in &blocks {
        import.server_block(block);
    }
    import.imported.needless.push(CLIENTS.to_owned());
    Ok(import.finish())
}

/// What no directive says: CoreDNS answers everybody, whether it has an `acl` or not.
const CLIENTS: &str = "clients: pods and machines of the cluster are answered, others are refused \
                       whatever `acl` says; CoreDNS answers all that reach it, as `clients: any` does";

/// A word, a brace or the end of a line, and its line.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Open,
    Close,
    End,
}

fn tokens(text: &str) -> Result<Vec<(usize, Token)>, String> {
    let mut tokens = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        if line.contains(is_unprintable) {
            return Err(format!("line {number}: control characters are no text of a Corefile"));
        }
        let mut word: Option<String> = None;
        let mut is_quoted = false;
        let mut letters = line.chars().peekable();
        while let Some(letter) = letters.next() {
            match letter {
                '"' => {
                    is_quoted = !is_quoted;
                    word.get_or_insert_default();
                }
                '\\' if is_quoted && letters.peek() == Some(&'"') => {
                    word.get_or_insert_default().extend(letters.next());
                }
                '#' if !is_quoted && word.is_none() => break,
                letter if letter.is_whitespace() && !is_quoted => {
                    tokens.extend(word.take().map(|word| (number, token(word))));
                }
                letter => word.get_or_insert_default().push(letter),
            }
        }
        if is_quoted {
            return Err(format!("line {number}: a quotation mark is missing"));
        }
        tokens.extend(word.take().map(|word| (number, token(word))));
        tokens.push((number, Token::End));
    }
    Ok(tokens)
}

/// What YAML cannot hold as it is, and no name, address or expression of a Corefile has.
fn is_unprintable(letter: char) -> bool {
    let is_space = matches!(letter, '\t' | '\r');
    letter.is_control() && !is_space || matches!(letter, '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

fn token(word: String) -> Token {
    match word.as_str() {
        "{" => Token::Open,
        "}" => Token::Close,
        _ => Token::Word(word),
    }
}

/// Blocks within blocks are looked at to this depth: servers, directives, their options.
const MAX_DEPTH: usize = 4;

fn directives(
    tokens: &[(usize, Token)],
    position: &mut usize,
    depth: usize,
) -> Result<Vec<Directive>, String> {
    let mut found = Vec::new();
    let mut current = Directive::default();
    while let Some((line, token)) = tokens.get(*position) {
        *position += 1;
        match token {
            Token::Word(word) => {
                current.line = if current.words.is_empty() { *line } else { current.line };
                current.words.push(word.clone());
            }
            Token::Open if depth >= MAX_DEPTH => {
                return Err(format!("line {line}: blocks are nested too deeply"));
            }
            Token::Open => current.block = directives(tokens, position, depth + 1)?,
            Token::End if current.words.is_empty() => {}
            // Several zones of one server may stand on lines of their own, each with a comma.
            Token::End if depth == 0 && current.words.last().is_some_and(|w| w.ends_with(',')) => {}
            Token::End => found.push(std::mem::take(&mut current)),
            Token::Close if depth == 0 => return Err(format!("line {line}: `}}` without `{{`")),
            Token::Close => {
                if !current.words.is_empty() {
                    found.push(current);
                }
                return Ok(found);
            }
        }
    }
    if depth > 0 {
        return Err("a block does not end: `}` is missing".into());
    }
    if !current.words.is_empty() {
        found.push(current);
    }
    Ok(found)
}

/// Directives of CoreDNS whose work is done in any case.
const NEEDLESS: &[(&str, &str)] = &[
    ("health", "the worker is watched by its supervisor"),
    ("ready", "the worker answers from its first moment"),
    ("reload", "the file is read anew whenever it changes"),
    ("loadbalance", "addresses are turned from answer to answer"),
    ("bufsize", "1232 octets are offered"),
    ("any", "ANY gets one small record"),
    ("cancel", "questions end in time"),
    ("minimal", "answers hold what was asked for"),
    ("multisocket", "there is a socket a processor"),
    ("bind", "the worker listens at the cluster's address on every node"),
    ("ready", "the worker answers from its first moment"),
];

/// A configuration in the making: lines by section.
#[derive(Default)]
struct Import {
    sections: BTreeMap<&'static str, Vec<String>>,
    imported: Imported,
}

impl Import {
    fn server_block(&mut self, block: &Directive) {
        if block.name().starts_with('(') {
            return self.lose(block, "snippets are not carried over: write their lines out");
        }
        let mut zones = Vec::new();
        for word in &block.words {
            for key in word.split(',').filter(|key| !key.is_empty()) {
                let bare = key.strip_prefix("dns://").unwrap_or(key);
                if bare.contains("://") {
                    self.lose(block, "servers over TLS, HTTPS or gRPC for clients are not there");
                    continue;
                }
                let zone = bare.rsplit_once(':').map_or(bare, |(zone, _)| zone);
                zones.push(if zone.is_empty() { ".".to_owned() } else { zone.to_owned() });
            }
        }
        for directive in &block.block {
            self.directive(directive, &zones);
        }
    }

    fn directive(&mut self, directive: &Directive, zones: &[String]) {
        let is_root = zones.iter().any(|zone| zone == ".");
        if let Some((name, why)) = NEEDLESS.iter().find(|(name, _)| *name == directive.name()) {
            let line = format!("line {}: {name}: {why}", directive.line);
            return self.imported.needless.push(line);
        }
        match directive.name() {
            "forward" => self.forward(directive, zones),
            "kubernetes" => self.kubernetes(directive),
            "cache" if is_root => self.cache(directive),
            "hosts" => self.hosts(directive),
            "rewrite" => self.rewrite(directive),
            "template" => self.template(directive),
            "dns64" => self.dns64(directive),
            "acl" => self.acl(directive, zones),
            "log" => self.log(directive),
            "errors" => self.set("errors", "errors: true".into()),
            "loop" => self.set("loop", "loop: true".into()),
            "autopath" => self.set("autopath", "autopath: true".into()),
            "prometheus" => {
                let address = directive.argument(0);
                let address = match address.strip_prefix(':') {
                    Some(port) => format!("0.0.0.0:{port}"),
                    None if address.is_empty() => "127.0.0.1:9153".into(),
                    None => address.replace("localhost", "127.0.0.1"),
                };
                self.set("prometheus", format!("prometheus: {}", quoted(&address)));
            }
            "cache" => self.lose(directive, "there is one cache for all zones"),
            _ => self.lose(directive, "there is no such option here"),
        }
    }

    fn forward(&mut self, directive: &Directive, zones: &[String]) {
        // The zone of the directive narrows that of the server.
        let own = directive.argument(0);
        let zones = if own == "." { zones.to_vec() } else { vec![own.to_owned()] };
        let (servers, names) = self.servers(directive);
        if servers.is_empty() {
            return self.lose(directive, "no server of it can be asked");
        }
        let mut lines = vec![format!("- zones: {}", list(&zones))];
        lines.push(format!("  to: {}", list(&servers)));
        lines.extend(names.first().map(|name| format!("  tls_servername: {}", quoted(name))));
        if names.len() > 1 {
            self.lose(directive, "a rule has one `tls_servername`: write a rule for each server");
        }
        for option in &directive.block {
            match option.name() {
                "except" => lines.push(format!("  except: {}", list(option.arguments()))),
                "policy" | "max_fails" | "max_concurrent" => {
                    lines.push(format!("  {}: {}", option.name(), plain(option.argument(0))));
                }
                "tls_servername" => {
                    lines.push(format!("  tls_servername: {}", quoted(option.argument(0))));
                }
                "tls" => lines.extend(self.tls_files(option, &servers)),
                "force_tcp" => lines.push("  force_tcp: true".into()),
                "health_check" => {
                    lines.push(format!("  health_check: {}", plain(option.argument(0))));
                    if option.arguments().len() > 1 {
                        self.lose(option, "probes have no options");
                    }
                }
                "prefer_udp" | "expire" => self.imported.needless.push(format!(
                    "line {}: {}: UDP comes first, and connections are kept while they serve",
                    option.line,
                    option.name()
                )),
                // What says that there is no such name is an answer.
                "failover" if !option.arguments().iter().any(|code| code == "NXDOMAIN") => {
                    let why = "the next server is asked whenever one fails";
                    let line = format!("line {}: failover: {why}", option.line);
                    self.imported.needless.push(line);
                }
                _ => self.lose(option, "`forward` has no such option here"),
            }
        }
        self.sections.entry("forward").or_default().extend(lines);
    }

    /// `tls`, `tls CA`, `tls CERT KEY` or `tls CERT KEY CA`, for those of the servers that are asked
    /// over TLS.
    fn tls_files(&mut self, option: &Directive, servers: &[String]) -> Option<String> {
        let files = option.arguments();
        let keys: &[&str] = match files.len() {
            0 | 1 => &["ca"],
            2 => &["cert", "key"],
            _ => &["cert", "key", "ca"],
        };
        let is_secure =
            |server: &String| server.starts_with("tls://") || server.starts_with("https://");
        if files.is_empty() || !servers.iter().any(is_secure) {
            let why = "the host's certificates count, for servers over TLS alone";
            self.imported.needless.push(format!("line {}: tls: {why}", option.line));
            return None;
        }
        let problem = if files.len() > keys.len() {
            "these are more files than a certificate, a key and a CA"
        } else if !servers.iter().all(is_secure) {
            "with `tls` all servers of a rule are asked over TLS"
        } else if !files.iter().all(|file| file.starts_with('/')) {
            "files of `tls` are written from / on"
        } else {
            let pairs = keys.iter().zip(files);
            let pairs = pairs.map(|(key, file)| format!("{key}: {}", quoted(file)));
            return Some(format!("  tls: {{{}}}", pairs.collect::<Vec<_>>().join(", ")));
        };
        self.lose(option, problem);
        None
    }

    /// The servers that can be asked, and the names in their certificates that stand behind their
    /// addresses, as in `tls://192.0.2.1%dns.example:853`.
    fn servers(&mut self, directive: &Directive) -> (Vec<String>, BTreeSet<String>) {
        let (mut servers, mut names) = (Vec::new(), BTreeSet::new());
        for word in directive.arguments().get(1..).unwrap_or_default() {
            let named = word.split_once('%').filter(|_| word.starts_with("tls://"));
            let server = match named {
                None => word.clone(),
                Some((address, behind)) => {
                    let (name, port) = behind.rsplit_once(':').unwrap_or((behind, ""));
                    names.insert(name.to_owned());
                    if port.is_empty() { address.to_owned() } else { format!("{address}:{port}") }
                }
            };
            if server.parse::<Target>().is_ok() {
                servers.push(server);
            } else {
                self.lose(directive, &format!("{word} is no address of a server"));
            }
        }
        (servers, names)
    }

    fn kubernetes(&mut self, directive: &Directive) {
        let mut lines = Vec::new();
        for option in &directive.block {
            match option.name() {
                "pods" => lines.push(format!("  pods: {}", plain(option.argument(0)))),
                "ttl" => lines.push(format!("  ttl: {}", seconds(option.argument(0)))),
                "fallthrough" => {
                    let zones = option.arguments();
                    let all = if zones.is_empty() { directive.arguments() } else { zones };
                    lines.push(format!("  fallthrough: {}", list(all)));
                }
                "namespaces" => {
                    lines.push(format!("  namespaces: {}", list(option.arguments())));
                }
                "labels" | "namespace_labels" => {
                    let selector = quoted(&option.arguments().join(" "));
                    lines.push(format!("  {}: {selector}", option.name()));
                }
                "noendpoints" | "endpoint_pod_names" => {
                    lines.push(format!("  {}: true", option.name()));
                }
                "ignore" if option.arguments() == ["empty_service"] => {
                    let why = "without an endpoint a headless Service has no records in any case";
                    self.imported.needless.push(format!("line {}: ignore: {why}", option.line));
                }
                name => match NO_KUBERNETES_OPTIONS.iter().find(|(other, _)| *other == name) {
                    Some((_, why)) if name == "multicluster" => self.lose(option, why),
                    Some((_, why)) => {
                        let line = format!("line {}: {name}: {why}", option.line);
                        self.imported.needless.push(line);
                    }
                    None => self.lose(option, "`kubernetes` has no such option here"),
                },
            }
        }
        if !lines.is_empty() {
            self.sections.entry("kubernetes").or_insert(lines);
        }
    }

    fn cache(&mut self, directive: &Directive) {
        let first = directive.argument(0);
        let ttl = if first.chars().all(|c| c.is_ascii_digit()) { first } else { "" };
        let mut lines = Vec::new();
        let mut kinds = BTreeMap::new();
        if !ttl.is_empty() {
            kinds.insert("success", format!("{{ttl: {ttl}s}}"));
            kinds.insert("denial", format!("{{ttl: {ttl}s}}"));
        }
        for option in &directive.block {
            let arguments = option.arguments();
            match (option.name(), arguments) {
                (kind @ ("success" | "denial"), [capacity, rest @ ..]) => {
                    let kind = if kind == "success" { "success" } else { "denial" };
                    let usual = if kind == "success" { "3600" } else { "1800" };
                    let most = rest.first().map_or(if ttl.is_empty() { usual } else { ttl }, |s| s);
                    let least = rest.get(1).map_or("5", |s| s);
                    let (capacity, most) = (plain(capacity), seconds(most));
                    let least = seconds(least);
                    let text = format!("{{capacity: {capacity}, ttl: {most}, min_ttl: {least}}}");
                    kinds.insert(kind, text);
                }
                ("prefetch", [amount, rest @ ..]) => {
                    let duration = rest.first().map_or("1m", |s| s);
                    let percentage = rest.get(1).map_or("10", |s| s.trim_end_matches('%'));
                    let [amount, duration, percentage] = [amount, duration, percentage].map(plain);
                    lines.push(format!(
                        "  prefetch: {{amount: {amount}, duration: {duration}, percentage: {percentage}}}"
                    ));
                }
                ("serve_stale", rest) => {
                    let duration = rest.first().map_or("1h", |s| s);
                    let mode = rest.get(1).map_or("immediate", |s| s);
                    let [duration, mode] = [duration, mode].map(plain);
                    lines.push(format!(
                        "  serve_stale: {{duration: {duration}, refresh_mode: {mode}}}"
                    ));
                }
                _ => self.lose(option, "`cache` has no such option here"),
            }
        }
        lines.extend(kinds.into_iter().map(|(kind, text)| format!("  {kind}: {text}")));
        if !lines.is_empty() {
            self.sections.entry("cache").or_insert(lines);
        }
    }

    fn hosts(&mut self, directive: &Directive) {
        if !directive.arguments().is_empty() {
            self.lose(directive, "a file of hosts is not read: write its entries here");
        }
        let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut lines = Vec::new();
        for option in &directive.block {
            match option.name() {
                "ttl" => lines.push(format!("  ttl: {}", seconds(option.argument(0)))),
                "fallthrough" => {
                    let line = option.line;
                    let why = "names that are not listed are asked of others";
                    self.imported.needless.push(format!("line {line}: fallthrough: {why}"));
                }
                address if address.parse::<std::net::IpAddr>().is_ok() => {
                    for name in option.arguments() {
                        names.entry(name.clone()).or_default().push(address.to_owned());
                    }
                }
                _ => self.lose(option, "`hosts` has no such option here"),
            }
        }
        lines.push("  entries:".into());
        lines.extend(names.iter().map(|(name, to)| format!("    {}: {}", quoted(name), list(to))));
        self.sections.entry("hosts").or_insert(lines);
    }

    fn rewrite(&mut self, directive: &Directive) {
        let mut words: Vec<&str> = directive.arguments().iter().map(String::as_str).collect();
        if matches!(words.first(), Some(&("stop" | "continue"))) {
            if words.first() == Some(&"continue") {
                self.lose(directive, "only the first rule that fits is applied");
            }
            words.remove(0);
        }
        let (kind, from, to, rest) = match words.as_slice() {
            [
                "name",
                kind @ ("exact" | "prefix" | "suffix" | "substring" | "regex"),
                from,
                to,
                rest @ ..,
            ] => (*kind, *from, *to, rest),
            ["name", from, to, rest @ ..] => ("exact", *from, *to, rest),
            // A block: its lines one by one, where only the rule for the question matters.
            [] if directive.block.iter().any(|inner| inner.name() == "name") => {
                for inner in directive.block.iter().filter(|inner| inner.name() == "name") {
                    let mut words = vec!["rewrite".to_owned()];
                    words.extend(inner.words.iter().cloned());
                    self.rewrite(&Directive { line: inner.line, words, block: vec![] });
                }
                return;
            }
            _ => return self.lose(directive, "only names are rewritten"),
        };
        if !matches!(rest, [] | ["answer", "auto"]) {
            self.lose(directive, "answers are always written back to the name that was asked for");
        }
        let (from, to) = (quoted(from), quoted(to));
        let line = format!("- {{type: {kind}, from: {from}, to: {to}}}");
        self.sections.entry("rewrite").or_default().push(line);
    }

    fn template(&mut self, directive: &Directive) {
        let [class, kind, zones @ ..] = directive.arguments() else {
            return self.lose(directive, "class and type are missing");
        };
        if !matches!(class.as_str(), "IN" | "ANY") {
            return self.lose(directive, "only the class IN is answered");
        }
        let zones = if zones.is_empty() { vec![".".to_owned()] } else { zones.to_vec() };
        let mut lines =
            vec![format!("- zones: {}", list(&zones)), format!("  type: {}", plain(kind))];
        for option in &directive.block {
            match option.name() {
                "match" if option.arguments().len() == 1 => {
                    lines.push(format!("  match: {}", quoted(option.argument(0))));
                }
                "answer" => lines.push(format!("  answer: {}", list(option.arguments()))),
                "rcode" => lines.push(format!("  rcode: {}", plain(option.argument(0)))),
                "fallthrough" => {}
                _ => self.lose(option, "`template` has no such option here"),
            }
        }
        self.sections.entry("template").or_default().extend(lines);
    }

    fn dns64(&mut self, directive: &Directive) {
        let mut lines = Vec::new();
        let mut prefix = directive.argument(0).to_owned();
        for option in &directive.block {
            match option.name() {
                "prefix" => prefix = option.argument(0).to_owned(),
                "translate_all" => lines.push("  translate_all: true".into()),
                _ => self.lose(option, "`dns64` has no such option here"),
            }
        }
        let prefix = if prefix.is_empty() { "64:ff9b::/96".to_owned() } else { prefix };
        lines.push(format!("  prefix: {}", quoted(&prefix)));
        self.sections.entry("dns64").or_insert(lines);
    }

    fn acl(&mut self, directive: &Directive, zones: &[String]) {
        let own = directive.arguments();
        let zones = if own.is_empty() { zones } else { own };
        for rule in &directive.block {
            if !matches!(rule.name(), "allow" | "block" | "filter" | "drop") {
                self.lose(rule, "`acl` has no such action");
                continue;
            }
            let mut lists: BTreeMap<&str, Vec<String>> = BTreeMap::new();
            let mut current = "";
            for word in rule.arguments() {
                match word.as_str() {
                    "type" => current = "types",
                    "net" => current = "networks",
                    "*" => {}
                    value if current == "networks" && !value.contains('/') => {
                        let bits = if value.contains(':') { 128 } else { 32 };
                        lists.entry(current).or_default().push(format!("{value}/{bits}"));
                    }
                    value => lists.entry(current).or_default().push(value.to_owned()),
                }
            }
            let mut line = format!("- {{action: {}, zones: {}", rule.name(), list(zones));
            for (key, values) in lists.iter().filter(|(key, _)| !key.is_empty()) {
                let _ = write!(line, ", {key}: {}", list(values));
            }
            line.push('}');
            self.sections.entry("acl").or_default().push(line);
        }
    }

    fn log(&mut self, directive: &Directive) {
        if !directive.arguments().is_empty() {
            self.lose(directive, "the log has one format, and is of all zones");
        }
        let class = directive.block.iter().find(|option| option.name() == "class");
        let class = match class.map(|option| option.argument(0)) {
            Some("denial") => "denial",
            Some("error") => "error",
            _ => "all",
        };
        self.set("log", format!("log: {class}"));
    }

    fn set(&mut self, section: &'static str, line: String) {
        self.sections.entry(section).or_insert_with(|| vec![line]);
    }

    fn lose(&mut self, directive: &Directive, why: &str) {
        let text = directive.words.join(" ");
        self.imported.lost.push(format!("line {}: {text}: {why}", directive.line));
    }

    fn finish(mut self) -> Imported {
        for (section, lines) in &self.sections {
            let is_scalar = lines.len() == 1 && lines[0].starts_with(&format!("{section}:"));
            if !is_scalar {
                let _ = writeln!(self.imported.yaml, "{section}:");
            }
            for line in lines {
                let _ = writeln!(self.imported.yaml, "{line}");
            }
        }
        self.imported
    }
}

/// A text between quotation marks of YAML, in which nothing has a meaning.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A number, a word or a time as it is. Anything else goes between quotation marks, to be refused as
/// a value: without them it could have a meaning in YAML.
fn plain(text: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_');
    let is_plain =
        text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(is_word);
    if is_plain { text.to_owned() } else { quoted(text) }
}

fn seconds(text: &str) -> String {
    plain(&format!("{text}s"))
}

fn list(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
    format!("[{}]", texts.join(", "))
}

#[cfg(test)]
mod tests;
