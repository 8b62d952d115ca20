//! The Kubernetes API client of all our programs.
//!
//! Small on purpose: HTTP/1.1 over TLS with a client certificate or a token, JSON decoded straight into the
//! caller's type (narrow structs stay narrow in memory), and watches that never end. The control
//! plane's own controllers use the same [`Client`] over an in-process [`Transport`].
//!
//! ```no_run
//! # async fn example() -> Result<(), client::ClientError> {
//! use client::{Client, ResourcePath, WatchEvent, WatchSpec};
//! use serde_json::Value;
//!
//! let client = Client::from_kubeconfig("/etc/flatnet/kubeconfig".as_ref()).await?;
//! let pods = ResourcePath::new("v1", "pods");
//! let web: Value = client.get(&pods.clone().namespace("default").name("web")).await?;
//! let mut watcher = client.watch::<Value>(WatchSpec::new(pods));
//! while let WatchEvent::Listed(items) = watcher.next().await {
//!     println!("{} pods, {web}", items.len());
//! }
//! # Ok(())
//! # }
//! ```

mod any_server;
mod config;
mod error;
mod event;
mod list;
mod path;
mod request;
mod service_account;
mod transport;
mod watch;

pub use any_server::any_server;
pub use config::{Identity, Kubeconfig};
pub use error::{ClientError, Status, StatusCause, StatusDetails};
pub use list::{List, ListMetadata, ListOptions};
pub use path::{Encoded, ResourcePath};
pub use request::{Client, DeleteOptions, PatchKind, Preconditions};
pub use service_account::SERVICE_ACCOUNT_DIRECTORY;
pub use transport::{Body, BodyError, Endpoint, HttpsTransport, Transport, TransportFuture};
pub use watch::{WatchEvent, WatchSpec, Watcher};
