//! URLs, as Go's `url.ParseRequestURI` reads them: absolute, or a path from the root.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use super::{Said, map_of};
use crate::cel::Error;
use crate::cel::value::Value;

/// The parts of a URL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Url {
    scheme: String,
    host: String,
    port: String,
    path: String,
    query: String,
}

pub(super) fn call<'a>(name: &str, arguments: &[Value<'a>]) -> Option<Said<'a>> {
    let value = match (name, arguments) {
        ("isURL", [Value::Text(text)]) => Value::Bool(Url::parse(text).is_some()),
        ("url", [Value::Text(text)]) => match Url::parse(text) {
            Some(url) => Value::Url(url.into()),
            None => {
                let why = "URL parse error during conversion from string";
                return Some(Err(Error::new(format!("{why}: {:?}", &**text))));
            }
        },
        ("getScheme", [Value::Url(url)]) => Value::text(url.scheme.clone()),
        ("getHost", [Value::Url(url)]) if url.port.is_empty() => Value::text(url.host.clone()),
        ("getHost", [Value::Url(url)]) => Value::text(format!("{}:{}", url.host, url.port)),
        ("getHostname", [Value::Url(url)]) => {
            let inner = url.host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
            Value::text(inner.unwrap_or(&url.host))
        }
        ("getPort", [Value::Url(url)]) => Value::text(url.port.clone()),
        ("getEscapedPath", [Value::Url(url)]) => Value::text(url.path.clone()),
        ("getQuery", [Value::Url(url)]) => query(&url.query),
        _ => return None,
    };
    Some(Ok(value))
}

fn query<'a>(text: &str) -> Value<'a> {
    let mut values: BTreeMap<String, Vec<Value<'a>>> = BTreeMap::new();
    for part in text.split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        if let (Some(name), Some(value)) = (unescape(name), unescape(value)) {
            values.entry(name).or_default().push(Value::text(value));
        }
    }
    map_of(values.into_iter().map(|(name, values)| (name, Value::list(values))))
}

/// Percent signs and plus signs resolved; `None` for what is wrong with them.
fn unescape(text: &str) -> Option<String> {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(octet) = rest.next() {
        match octet {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                let digits = std::str::from_utf8(&digits).ok()?;
                octets.push(u8::from_str_radix(digits, 16).ok()?);
            }
            b'+' => octets.push(b' '),
            other => octets.push(other),
        }
    }
    String::from_utf8(octets).ok()
}

impl Url {
    /// How long it is, in bytes.
    pub(in crate::cel) fn size(&self) -> usize {
        self.scheme.len() + self.host.len() + self.port.len() + self.path.len() + self.query.len()
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let is_clean = !text.chars().any(|one| one.is_control() || one == ' ');
        if !is_clean || unescape(text).is_none() {
            return None;
        }
        let (before, query) = text.split_once('?').unwrap_or((text, ""));
        let (scheme, rest) = match before.starts_with('/') {
            true => ("", before),
            false => before.split_once(':').filter(|(scheme, _)| is_scheme(scheme))?,
        };
        let mut url = Self { query: query.to_owned(), ..Self::default() };
        url.scheme = scheme.to_ascii_lowercase();
        let Some(authority) = rest.strip_prefix("//").filter(|_| !scheme.is_empty()) else {
            // Without a host: what has a scheme and no slash says nothing more of itself.
            rest.clone_into(&mut url.path);
            return Some(url);
        };
        let end = authority.find('/').unwrap_or(authority.len());
        let (authority, path) = authority.split_at_checked(end)?;
        path.clone_into(&mut url.path);
        let address = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let (host, port) = match address.rfind(']') {
            Some(end) => address.split_at_checked(end + 1)?,
            None => address.split_at_checked(address.find(':').unwrap_or(address.len()))?,
        };
        let is_six = |inner: &str| inner.parse::<Ipv6Addr>().is_ok();
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if host.contains(['[', ']']) && !inner.is_some_and(is_six) {
            return None;
        }
        host.clone_into(&mut url.host);
        if !port.is_empty() {
            let digits = port.strip_prefix(':')?;
            digits.bytes().all(|byte| byte.is_ascii_digit()).then_some(())?;
            digits.clone_into(&mut url.port);
        }
        Some(url)
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}
