//! Formats by name, as the `format` library of Kubernetes has them.

use super::{Said, Url};
use crate::cel::value::Value;
use crate::names;
use crate::structural::fits_format;

/// A format: what it is called, and what is wrong with a text that is not of it.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    pub(in crate::cel) name: &'static str,
    faults: fn(&str) -> Vec<String>,
}

const FORMATS: &[Format] = &[
    Format { name: "byte", faults: |text| unless(fits_format("byte", text), "invalid base64") },
    Format { name: "date", faults: |text| unless(fits_format("date", text), "invalid date") },
    Format {
        name: "datetime",
        faults: |text| unless(fits_format("date-time", text), "invalid datetime"),
    },
    Format { name: "dns1035Label", faults: names::rfc1035_label_faults },
    Format {
        name: "dns1035LabelPrefix",
        faults: |text| names::rfc1035_label_faults(&without_dash(text)),
    },
    Format { name: "dns1123Label", faults: names::label_faults },
    Format { name: "dns1123LabelPrefix", faults: |text| names::label_faults(&without_dash(text)) },
    Format { name: "dns1123Subdomain", faults: names::subdomain_faults },
    Format {
        name: "dns1123SubdomainPrefix",
        faults: |text| names::subdomain_faults(&without_dash(text)),
    },
    Format { name: "labelValue", faults: names::label_value_faults },
    Format { name: "qualifiedName", faults: names::qualified_name_faults },
    Format {
        name: "uri",
        faults: |text| unless(Url::parse(text).is_some(), "invalid URI for request"),
    },
    Format {
        name: "uuid",
        faults: |text| unless(fits_format("uuid", text), "does not match the UUID format"),
    },
];

pub(super) fn call<'a>(name: &str, arguments: &[Value<'a>]) -> Option<Said<'a>> {
    let named = |name: &str| FORMATS.iter().find(|format| format.name == name);
    let value = match (name, arguments) {
        ("format.named", [Value::Text(name)]) => {
            Value::optional(named(name).map(|format| Value::Format(*format)))
        }
        ("validate", [Value::Format(format), Value::Text(text)]) => {
            let faults: Vec<Value<'a>> =
                (format.faults)(text).into_iter().map(Value::text).collect();
            Value::optional((!faults.is_empty()).then(|| Value::list(faults)))
        }
        (name, []) => Value::Format(*named(name.strip_prefix("format.")?)?),
        _ => return None,
    };
    Some(Ok(value))
}

fn unless(fits: bool, fault: &str) -> Vec<String> {
    if fits { Vec::new() } else { vec![fault.to_owned()] }
}

/// The beginning of a name may end with a dash; what it is made into may not.
fn without_dash(text: &str) -> String {
    match text.strip_suffix('-') {
        Some(before) if !before.is_empty() => {
            let mut kept = before.to_owned();
            kept.pop();
            kept + "a"
        }
        _ => text.to_owned(),
    }
}
