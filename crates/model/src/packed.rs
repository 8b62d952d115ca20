//! Objects that are kept by the thousand and read one at a time, in few bytes.

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// An object of which there are many, written down in one piece of memory: a tenth of what its
/// texts, lists and maps take one by one. Reading it takes a microsecond or two.
///
/// For types whose derived forms of writing and reading agree without field names: what
/// [`crate::meta::nullable`] is for.
#[derive(Clone, Debug)]
pub struct Packed<T> {
    bytes: Box<[u8]>,
    of: PhantomData<fn() -> T>,
}

impl<T: Serialize + DeserializeOwned> Packed<T> {
    /// Writes an object down.
    ///
    /// # Panics
    /// When the type cannot be written without field names: no value of a proper type panics.
    pub fn new(object: &T) -> Self {
        let bytes = postcard::to_allocvec(object).expect("the type is written in order");
        Self { bytes: bytes.into_boxed_slice(), of: PhantomData }
    }

    /// The object.
    ///
    /// # Panics
    /// When the type reads in another order than it writes: no value of a proper type panics.
    pub fn get(&self) -> T {
        postcard::from_bytes(&self.bytes).expect("the type is read as it was written")
    }
}

/// Equal objects are written alike.
impl<T> PartialEq for Packed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl<T> Eq for Packed<T> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EndpointSlice, Service};

    /// Every field, with nothing at its default.
    #[test]
    fn what_is_written_down_is_read_again() {
        let text = r#"{"metadata":{"namespace":"shop","name":"web","uid":"u","labels":{"a":"b"},
            "annotations":{"c":"d"}},"spec":{"type":"LoadBalancer","clusterIPs":["10.96.0.7",
            "fd00::7"],"selector":{"app":"web"},"ports":[{"name":"http","protocol":"UDP",
            "port":80,"nodePort":30080}],"sessionAffinity":"ClientIP","sessionAffinityConfig":
            {"clientIP":{"timeoutSeconds":5}},"externalTrafficPolicy":"Local",
            "internalTrafficPolicy":"Local","externalIPs":["192.0.2.1"],
            "loadBalancerSourceRanges":["192.0.2.0/24"],"healthCheckNodePort":30081,
            "publishNotReadyAddresses":true,"externalName":"example.com"},"status":
            {"loadBalancer":{"ingress":[{"ip":"192.0.2.2","ipMode":"VIP"}]}}}"#;
        let service: Service = serde_json::from_str(text).expect("a Service");
        assert_eq!(Packed::new(&service).get(), service);
        assert_eq!(Packed::new(&Service::default()).get(), Service::default());
        let text = r#"{"metadata":{"namespace":"shop","name":"web-1","labels":{"a":"b"}},
            "addressType":"IPv4","endpoints":[{"addresses":["10.244.1.5"],"conditions":
            {"ready":true,"serving":false,"terminating":true},"hostname":"h","nodeName":"n",
            "hints":{"forZones":[{"name":"z"}],"forNodes":[{"name":"n"}]},"targetRef":
            {"name":"p"}},{}],"ports":[{"name":"http","protocol":"SCTP","port":8080},{}]}"#;
        let slice: EndpointSlice = serde_json::from_str(text).expect("a slice");
        assert_eq!(Packed::new(&slice).get(), slice);
        let other = EndpointSlice { address_type: "IPv6".into(), ..slice.clone() };
        assert!(Packed::new(&slice) != Packed::new(&other));
    }
}
