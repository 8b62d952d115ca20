//! Priority: the class of a pod gives it its priority, and only one class is the default.

use std::sync::Arc;

use model::NamespacedName;
use serde_json::Value;

use crate::kinds::pod::POD;
use crate::kinds::scheduling::{DEFAULT_POLICY, PRIORITY_CLASS, number, system_value};
use crate::{Object, Resource, Status, Store, json};

/// What a class gives a pod.
struct Priority {
    class: String,
    value: i64,
    policy: String,
}

impl Priority {
    fn of(class: &Object) -> Self {
        let (value, policy) = (number(&class.value), json::text(&class.value, "/preemptionPolicy"));
        Self { class: class.key.name.clone(), value, policy: policy.to_owned() }
    }

    fn plain(class: &str, value: i64) -> Self {
        Self { class: class.to_owned(), value, policy: DEFAULT_POLICY.to_owned() }
    }
}

impl Store {
    /// Gives a new pod the priority of its class. It may say the same itself, but nothing else.
    pub(super) fn admit_priority(&self, pod: &mut Value) -> Result<(), Status> {
        let refuse =
            |why: String| Err(Status::forbidden(&POD, json::text(pod, "/metadata/name"), why));
        let Priority { class, value, policy } = match json::text(pod, "/spec/priorityClassName") {
            "" => match self.default_class() {
                Some(class) => Priority::of(&class),
                None => Priority::plain("", 0),
            },
            name => {
                let key = NamespacedName::new("", name);
                // The system's need not be there yet.
                let system = system_value(name).map(|value| Priority::plain(name, value));
                let found = self.head(&PRIORITY_CLASS, &key).map(|class| Priority::of(&class));
                match found.or(system) {
                    Some(priority) => priority,
                    None => return refuse(format!("no PriorityClass with name {name} was found")),
                }
            }
        };
        if let Some(given) = json::integer(pod, "/spec/priority").filter(|given| *given != value) {
            return refuse(format!(
                "the integer value of priority ({given}) must not be provided in pod spec; \
                 priority admission controller computed {value} from the given PriorityClass name"
            ));
        }
        let given = json::text(pod, "/spec/preemptionPolicy");
        if !given.is_empty() && given != policy {
            return refuse(format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; \
                 priority admission controller computed {policy} from the given PriorityClass name"
            ));
        }
        if !class.is_empty() {
            json::set(pod, "/spec/priorityClassName", class);
        }
        json::set(pod, "/spec/priority", value);
        json::set(pod, "/spec/preemptionPolicy", policy);
        Ok(())
    }

    /// Refuses a second default among the PriorityClasses.
    pub(super) fn admit_priority_class(
        &self,
        resource: &Resource,
        class: &Value,
    ) -> Result<(), Status> {
        if resource != &PRIORITY_CLASS || !json::flag(class, "/globalDefault") {
            return Ok(());
        }
        let name = json::text(class, "/metadata/name");
        match self.default_class().filter(|other| other.key.name != name) {
            None => Ok(()),
            Some(other) => {
                let why = format!(
                    "PriorityClass {} is already marked as default. Only one default can exist",
                    other.key.name
                );
                Err(Status::forbidden(&PRIORITY_CLASS, name, why))
            }
        }
    }

    /// The class of pods that name none: of several, the one with the lowest value.
    fn default_class(&self) -> Option<Arc<Object>> {
        let mut classes = self.head_objects(PRIORITY_CLASS.storage);
        classes.retain(|class| json::flag(&class.value, "/globalDefault"));
        classes.into_iter().min_by_key(|class| number(&class.value))
    }
}

/// Refuses to delete what the cluster cannot be without.
pub(super) fn admit_delete(resource: &Resource, name: &str) -> Result<(), Status> {
    if resource == &PRIORITY_CLASS && system_value(name).is_some() {
        let why = "this is a system priority class and cannot be deleted";
        return Err(Status::forbidden(resource, name, why));
    }
    Ok(())
}
