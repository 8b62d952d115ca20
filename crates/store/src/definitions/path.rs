//! The part of Kubernetes' JSONPath that definitions use: `.spec.replicas`, `.spec.ports[0].name`,
//! `.status.conditions[?(@.type=="Ready")].status`, `.metadata.labels['a/b']`,
//! `.metadata.annotations.a\.b/c`.

use serde_json::Value;

/// Longest path, bytes.
const MAX_PATH_BYTES: usize = 1_024;
/// Values that a path is followed to.
const MAX_VALUES: usize = 1_000;

/// A path.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Path {
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Member(String),
    /// From the end when it is negative.
    Index(i64),
    All,
    /// Items that have (or, when not wanted equal, do not have) a value at a path of their own.
    Filter {
        path: Path,
        equal: bool,
        value: Option<Value>,
    },
}

impl Path {
    /// Reads a path; `None` for what is none, or not of this part.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let inner = text.strip_prefix('{').and_then(|text| text.strip_suffix('}'));
        let mut rest = inner.unwrap_or(text);
        if rest.len() > MAX_PATH_BYTES || !rest.starts_with(['.', '[']) {
            return None;
        }
        let mut steps = Vec::new();
        while !rest.is_empty() {
            let (step, after) = match rest.strip_prefix('[') {
                Some(bracket) => in_brackets(bracket)?,
                None => member(rest.strip_prefix('.')?)?,
            };
            steps.extend(step);
            rest = after;
        }
        Some(Self { steps })
    }

    /// The path as a JSON pointer; `None` when it names more than one place.
    pub(crate) fn pointer(&self) -> Option<String> {
        let token = |step: &Step| match step {
            Step::Member(name) => Some(format!("/{}", name.replace('~', "~0").replace('/', "~1"))),
            _ => None,
        };
        self.steps.iter().map(token).collect()
    }

    /// The first value that the path leads to.
    pub(crate) fn first<'a>(&self, root: &'a Value) -> Option<&'a Value> {
        let mut found = vec![root];
        for step in &self.steps {
            found =
                found.into_iter().flat_map(|value| step.follow(value)).take(MAX_VALUES).collect();
        }
        found.first().copied()
    }
}

impl Step {
    fn follow<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        match (self, value) {
            (Self::Member(name), Value::Object(members)) => members.get(name).into_iter().collect(),
            (Self::Index(index), Value::Array(items)) => {
                let place = match usize::try_from(*index) {
                    Ok(place) => Some(place),
                    Err(_) => usize::try_from(index.unsigned_abs())
                        .ok()
                        .and_then(|back| items.len().checked_sub(back)),
                };
                place.and_then(|place| items.get(place)).into_iter().collect()
            }
            (Self::All, Value::Array(items)) => items.iter().collect(),
            (Self::All, Value::Object(members)) => members.values().collect(),
            (Self::Filter { path, equal, value: wanted }, Value::Array(items)) => {
                let fits = |item: &&Value| match (path.first(item), wanted) {
                    (found, None) => found.is_some(),
                    (found, wanted) => (found == wanted.as_ref()) == *equal,
                };
                items.iter().filter(fits).collect()
            }
            _ => Vec::new(),
        }
    }
}

type Parsed<'a> = (Option<Step>, &'a str);

/// A name after a dot; a backslash takes the dot after it into the name. A path may end with a dot.
fn member(text: &str) -> Option<Parsed<'_>> {
    let mut name = String::new();
    let mut characters = text.char_indices();
    let mut end = text.len();
    while let Some((place, one)) = characters.next() {
        match one {
            '\\' => name.push(characters.next()?.1),
            '.' | '[' => {
                end = place;
                break;
            }
            other => name.push(other),
        }
    }
    let rest = text.get(end..)?;
    let step = match name.as_str() {
        "" if rest.is_empty() || rest.starts_with('[') => None,
        "" => return None,
        "*" => Some(Step::All),
        _ => Some(Step::Member(name)),
    };
    Some((step, rest))
}

fn in_brackets(text: &str) -> Option<Parsed<'_>> {
    if let Some(filter) = text.strip_prefix("?(") {
        let (condition, rest) = filter.split_once(")]")?;
        return Some((Some(condition_of(condition)?), rest));
    }
    for quote in ['\'', '"'] {
        if let Some(quoted) = text.strip_prefix(quote) {
            let (name, rest) = quoted.split_once(quote)?;
            return Some((Some(Step::Member(name.to_owned())), rest.strip_prefix(']')?));
        }
    }
    let (inner, rest) = text.split_once(']')?;
    let step = if inner == "*" { Step::All } else { Step::Index(inner.trim().parse().ok()?) };
    Some((Some(step), rest))
}

/// `@.type=="Ready"`, `@.ready==true`, `@.name != 'a'`, `@.name`.
fn condition_of(text: &str) -> Option<Step> {
    let (left, equal, right) = match (text.split_once("=="), text.split_once("!=")) {
        (Some((left, right)), _) => (left, true, Some(right)),
        (None, Some((left, right))) => (left, false, Some(right)),
        (None, None) => (text, true, None),
    };
    let path = Path::parse(left.trim().strip_prefix('@')?)?;
    let value = match right.map(str::trim) {
        None => None,
        Some(right) => {
            let quoted = |quote: char| right.strip_prefix(quote)?.strip_suffix(quote);
            match quoted('"').or_else(|| quoted('\'')) {
                Some(text) => Some(text.into()),
                None => Some(serde_json::from_str(right).ok()?),
            }
        }
    };
    Some(Step::Filter { path, equal, value })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_lead_to_values() {
        let object = json!({
            "metadata": {"labels": {"a/b": "1"}, "annotations": {"a.b/c": "2"}},
            "spec": {"ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53}]},
            "status": {"conditions": [
                {"type": "Old", "status": "False"}, {"type": "Ready", "status": "True"},
            ]},
        });
        for (path, expected) in [
            (".metadata.labels['a/b']", json!("1")),
            (r".metadata.annotations.a\.b/c", json!("2")),
            (".spec.ports[0].name", json!("http")),
            (".spec.ports[-1].port", json!(53)),
            (".spec.ports[*].name", json!("http")),
            ("{.spec.ports[1].port}", json!(53)),
            (r#".status.conditions[?(@.type=="Ready")].status"#, json!("True")),
            (".status.conditions[?(@.type!='Old')].status", json!("True")),
            (".spec.nothing", Value::Null),
            (".spec.ports[7].name", Value::Null),
        ] {
            let found = Path::parse(path).expect("a path").first(&object).cloned();
            assert_eq!(found.unwrap_or_default(), expected, "{path}");
        }
        for wrong in ["", "spec", ".spec[", ".spec[?(@.a==)]", "..spec", ".a[x]", &".a".repeat(999)]
        {
            assert_eq!(Path::parse(wrong), None, "{wrong}");
        }
        let pointer = |path| Path::parse(path).and_then(|path| path.pointer());
        assert_eq!(pointer(".spec.a"), Some("/spec/a".to_owned()));
        assert_eq!(pointer(".metadata.labels['a/b']"), Some("/metadata/labels/a~1b".to_owned()));
        assert_eq!(pointer(".spec.ports[0]"), None);
    }
}
