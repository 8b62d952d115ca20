//! Watches. They pull: a watcher is a cursor into the window of its resource, so that a slow
//! client costs nothing, and falls out of the window at a named limit.

use std::sync::Arc;

use model::NamespacedName;
use serde_json::{Value, json};

use crate::conversion::{Conversions, unconverted};
use crate::object::Kept;
use crate::read::parse_revision;
use crate::selector::{FieldSelector, LabelSelector, selects};
use crate::validate::FieldErrors;
use crate::window::Entry;
use crate::{ListOptions, Object, Operation, Resource, Status, Store};

/// What a watch asks for. The texts stand as the query parameters hold them; empty is unset.
#[derive(Clone, Debug, Default)]
pub struct WatchOptions {
    /// Only this namespace; empty for all.
    pub namespace: String,
    /// Which labels.
    pub labels: LabelSelector,
    /// Which fields.
    pub fields: FieldSelector,
    /// `resourceVersion`.
    pub resource_version: String,
    /// `resourceVersionMatch`.
    pub resource_version_match: String,
    /// `sendInitialEvents`, when it is given.
    pub send_initial_events: Option<bool>,
    /// `allowWatchBookmarks`.
    pub allow_bookmarks: bool,
}

/// One running watch: what it selects and how far it has come.
#[derive(Clone, Debug)]
pub struct Watcher {
    /// The row that was asked for.
    pub resource: &'static Resource,
    options: WatchOptions,
    position: Position,
}

#[derive(Clone, Debug)]
enum Position {
    /// The state of now is still to be sent, then perhaps the bookmark that ends it.
    Initial { bookmark: bool },
    /// All up to this revision is sent.
    After(u64),
}

/// The type of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// The object is new, or entered the selection.
    Added,
    /// The object changed.
    Modified,
    /// The object is gone, or left the selection.
    Deleted,
}

impl EventType {
    /// The text on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// What a watch has to say.
#[derive(Clone, Debug)]
pub enum WatchEvent {
    /// A change of one object.
    Object(EventType, Arc<Object>),
    /// A bookmark: the object of the event.
    Bookmark(Value),
}

impl WatchEvent {
    /// The event for the wire, with the object as it is.
    pub fn to_value(&self) -> Value {
        match self {
            Self::Object(event, object) => {
                json!({"type": event.as_str(), "object": object.to_value()})
            }
            Self::Bookmark(object) => json!({"type": "BOOKMARK", "object": object}),
        }
    }
}

/// The `ERROR` event that ends a watch.
impl Status {
    /// The event for the wire: an error after the headers are sent is told inside the stream.
    pub fn to_watch_event(&self) -> Value {
        json!({"type": "ERROR", "object": self.to_value()})
    }
}

impl Store {
    /// Begins a watch. Nothing is read yet: [`Store::watch_next`] does that.
    ///
    /// # Errors
    /// 400 for a malformed revision, 422 for options that contradict each other, 504 for a
    /// streaming list at a revision that does not exist yet. A revision that is too old is no error here: the first [`Store::watch_next`] tells it in the stream.
    pub fn watch(
        &self,
        resource: &'static Resource,
        options: WatchOptions,
    ) -> Result<Watcher, Status> {
        check_initial_events(&options)?;
        let revision = parse_revision(&options.resource_version)?;
        if options.send_initial_events == Some(true) {
            self.check_not_ahead(revision.unwrap_or(0))?;
        }
        let position = match (revision, options.send_initial_events) {
            (_, Some(true)) => Position::Initial { bookmark: options.allow_bookmarks },
            (None | Some(0), Some(false)) => Position::After(self.revision),
            (None | Some(0), None) => Position::Initial { bookmark: false },
            (Some(revision), _) => Position::After(revision),
        };
        Ok(Watcher { resource, options, position })
    }

    /// The next events of a watch; at most `limit` records are looked at. Empty when there is
    /// nothing new: then wait for the next [`Store::publish`] of the resource's storage.
    ///
    /// # Errors
    /// 410 when the watch has fallen out of the window: tell it in the stream and end the watch.
    pub fn watch_next(
        &self,
        watcher: &mut Watcher,
        limit: usize,
    ) -> Result<Vec<WatchEvent>, Status> {
        self.watch_converted(watcher, limit, &mut Conversions::default())
    }

    /// As [`Store::watch_next`], with what webhooks have converted, or are to convert before the
    /// watch goes on.
    ///
    /// # Errors
    /// As for [`Store::watch_next`]; 500 where a webhook would have to convert objects.
    pub fn watch_converted(
        &self,
        watcher: &mut Watcher,
        limit: usize,
        conversions: &mut Conversions,
    ) -> Result<Vec<WatchEvent>, Status> {
        let after = match watcher.position {
            Position::Initial { bookmark } => {
                let events = self.initial_events(watcher, bookmark, conversions)?;
                watcher.position = Position::After(self.revision);
                if !events.is_empty() {
                    return Ok(events);
                }
                self.revision
            }
            Position::After(revision) => revision,
        };
        let Some(shelf) = self.shelf(watcher.resource) else {
            return Err(Status::unknown_path());
        };
        if after < shelf.window.floor {
            return Err(Status::expired(format!(
                "too old resource version: {after} ({})",
                shelf.window.floor
            )));
        }
        let mut events = Vec::new();
        let mut reached = after;
        let mut looked_at = 0;
        for entry in shelf.window.after(after).take(limit) {
            looked_at += 1;
            reached = entry.revision;
            events.extend(watcher.event(entry, conversions));
        }
        if conversions.is_wanting() {
            return Err(unconverted(watcher.resource));
        }
        // A watcher of an idle resource moves on with the store, so that its bookmarks are fresh.
        // One from the future stays where it is.
        if looked_at < limit {
            self.check_served(watcher.resource, looked_at)?;
            reached = reached.max(self.revision);
        }
        watcher.position = Position::After(reached.max(after));
        Ok(events)
    }

    /// Ends a watch of what is defined no more, once all its events are told.
    fn check_served(&self, resource: &Resource, untold: usize) -> Result<(), Status> {
        let is_gone =
            resource.custom.is_some() && self.definitions.storage_row(resource.storage).is_none();
        if is_gone && untold == 0 { Err(Status::unknown_path()) } else { Ok(()) }
    }

    fn initial_events(
        &self,
        watcher: &Watcher,
        bookmark: bool,
        conversions: &mut Conversions,
    ) -> Result<Vec<WatchEvent>, Status> {
        let options = ListOptions {
            namespace: watcher.options.namespace.clone(),
            labels: watcher.options.labels.clone(),
            fields: watcher.options.fields.clone(),
            ..ListOptions::default()
        };
        let list = self.list_converted(watcher.resource, &options, conversions)?;
        let mut events: Vec<WatchEvent> = list
            .items
            .into_iter()
            .map(|object| WatchEvent::Object(EventType::Added, object))
            .collect();
        if bookmark {
            let mut object = bookmark_object(watcher.resource, self.revision);
            let annotations = json!({"k8s.io/initial-events-end": "true"});
            crate::json::set(&mut object, "/metadata/annotations", annotations);
            events.push(WatchEvent::Bookmark(object));
        }
        Ok(events)
    }
}

impl Watcher {
    /// A bookmark of how far the watch has come; `None` when the client asked for none, or while
    /// the initial state is still to be sent.
    pub fn bookmark(&self) -> Option<WatchEvent> {
        match self.position {
            Position::After(revision) if self.options.allow_bookmarks => {
                Some(WatchEvent::Bookmark(bookmark_object(self.resource, revision)))
            }
            _ => None,
        }
    }

    /// The event that a record means for this watch: an object can enter and leave the selection.
    /// None also where something is to be converted first.
    fn event(&self, entry: &Entry, conversions: &mut Conversions) -> Option<WatchEvent> {
        if !self.in_namespace(&entry.object.untouched().key) {
            return None;
        }
        let mut shown = |kept: &Kept| conversions.present(self.resource, &kept.lent());
        let object = shown(&entry.object);
        let previous = match &entry.previous {
            // Where all are selected nobody looks at it.
            Some(previous) if self.selects_all() => Some(previous.lent()),
            Some(previous) => Some(shown(previous)?),
            None => None,
        };
        let object = object?;
        let is_in = entry.operation != Operation::Delete && self.selects(&object);
        let previous = previous.filter(|previous| self.selects(previous));
        match (previous, is_in) {
            (None, false) => None,
            (None, true) => Some(WatchEvent::Object(EventType::Added, object)),
            (Some(_), true) => Some(WatchEvent::Object(EventType::Modified, object)),
            (Some(_), false) if entry.operation == Operation::Delete => {
                Some(WatchEvent::Object(EventType::Deleted, object))
            }
            // It left the selection: the old object, under the new revision.
            (Some(previous), false) => {
                let gone = Arc::new(previous.at_revision(entry.revision));
                Some(WatchEvent::Object(EventType::Deleted, gone))
            }
        }
    }

    fn in_namespace(&self, key: &NamespacedName) -> bool {
        self.options.namespace.is_empty() || self.options.namespace == key.namespace
    }

    fn selects_all(&self) -> bool {
        self.options.labels.is_empty() && self.options.fields.is_empty()
    }

    fn selects(&self, object: &Object) -> bool {
        selects(&self.options.labels, &self.options.fields, object)
    }
}

fn bookmark_object(resource: &Resource, revision: u64) -> Value {
    json!({
        "kind": resource.kind,
        "apiVersion": resource.api_version(),
        "metadata": {"resourceVersion": revision.to_string()},
    })
}

fn check_initial_events(options: &WatchOptions) -> Result<(), Status> {
    let mut errors = FieldErrors::default();
    let field = "resourceVersionMatch";
    match (options.send_initial_events, options.resource_version_match.as_str()) {
        (None, "") | (Some(_), "NotOlderThan") => {}
        (None, _) => errors.forbidden(
            field,
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ),
        (Some(_), _) => errors.forbidden(
            field,
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ),
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Status::invalid_kind("meta.k8s.io", "ListOptions", "", &errors))
    }
}
