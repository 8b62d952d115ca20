//! Complete lists, as the loop takes them in: without what nothing here reads, and packed as they
//! come. As trees, all Services and slices of a large cluster are many times what is kept of them.

use model::packed::Unsorted;
use model::world::{Kind, Object};
use model::{EndpointSlice, NamespacedName, Service};

use crate::narrow::{narrow, narrow_service, narrow_slice};

/// A complete list of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List(model::world::List);

impl List {
    /// A list of these objects. Those of another kind are ignored.
    pub fn new(kind: Kind, objects: impl IntoIterator<Item = Object>) -> Self {
        let narrowed = objects.into_iter().map(|mut object| {
            narrow(&mut object);
            object
        });
        Self(model::world::List::new(kind, narrowed))
    }

    pub(crate) fn into_objects(self) -> model::world::List {
        self.0
    }
}

/// Services or slices of a list that comes page by page.
pub struct Pages<T>(Unsorted<NamespacedName, T>);

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Self(Unsorted::default())
    }
}

impl Extend<Service> for Pages<Service> {
    fn extend<I: IntoIterator<Item = Service>>(&mut self, page: I) {
        for mut service in page {
            narrow_service(&mut service);
            self.0.push(&service.metadata.key(), &service);
        }
    }
}

impl Extend<EndpointSlice> for Pages<EndpointSlice> {
    fn extend<I: IntoIterator<Item = EndpointSlice>>(&mut self, page: I) {
        for mut slice in page {
            narrow_slice(&mut slice);
            self.0.push(&slice.metadata.key(), &slice);
        }
    }
}

impl From<Pages<Service>> for List {
    fn from(pages: Pages<Service>) -> Self {
        Self(model::world::List::Services(pages.0.into_map()))
    }
}

impl From<Pages<EndpointSlice>> for List {
    fn from(pages: Pages<EndpointSlice>) -> Self {
        Self(model::world::List::EndpointSlices(pages.0.into_map()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_list_that_comes_in_pages_is_the_list_of_all() {
        let slice = |number: u32, address: &str| -> EndpointSlice {
            serde_json::from_value(serde_json::json!({
                "metadata": {
                    "namespace": "shop",
                    "name": format!("web-{number}"),
                    "uid": "u",
                    "labels": { "kubernetes.io/service-name": "web", "other": "label" },
                },
                "addressType": "IPv4",
                "endpoints": [{ "addresses": [address, "10.244.9.9"] }],
            }))
            .expect("a slice")
        };
        let service = |number: u32| -> Service {
            serde_json::from_value(serde_json::json!({
                "metadata": {
                    "namespace": "shop",
                    "name": format!("web-{number}"),
                    "annotations": { "flatnet.io/x": "y", "other": "annotation" },
                },
            }))
            .expect("a Service")
        };
        let (mut slices, mut services) = (Pages::default(), Pages::default());
        let mut objects = vec![];
        for page in [10..20, 0..10, 15..25] {
            let address = format!("10.244.1.{}", page.start);
            slices.extend(page.clone().map(|number| slice(number, &address)));
            services.extend(page.clone().map(service));
            objects.extend(page.clone().map(|one| Object::Service(Arc::new(service(one)))));
            let slice = |one| Object::EndpointSlice(Arc::new(slice(one, &address)));
            objects.extend(page.map(slice));
        }
        for (paged, kind) in
            [(List::from(slices), Kind::EndpointSlice), (List::from(services), Kind::Service)]
        {
            let whole = List::new(kind, objects.clone());
            assert_eq!(paged, whole);
            assert_eq!(paged.into_objects().len(), 25);
        }
    }
}
