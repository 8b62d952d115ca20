//! Listening on this machine, and carrying what comes to the pod that is bound at the time.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::ports::Protocol;
use super::session::{Flow, Session};

/// Connections of one port at a time: half of what a session has room for.
const MAX_CONNECTIONS: usize = 64;
/// Clients of one UDP port at a time, by their addresses; what further ones send is dropped.
const MAX_UDP_CLIENTS: usize = 64;
/// A UDP client that neither sends nor gets anything for this long is forgotten, seconds.
const UDP_IDLE_S: u64 = 60;
/// Datagrams of one client that wait for the session; further ones are dropped, as networks do.
const UDP_QUEUE: usize = 64;
/// Largest datagram, bytes.
const MAX_DATAGRAM_BYTES: usize = 65_535;
/// How long a new connection waits for a pod, seconds.
const BINDING_TIMEOUT_S: u64 = 10;
/// Bytes of a connection moved at a time.
const CHUNK_BYTES: usize = 16 * 1024;
/// Wait after an `accept` that failed, milliseconds: mostly for want of descriptors.
const ACCEPT_RETRY_MS: u64 = 100;

/// The pod that new flows go to.
#[derive(Clone)]
pub struct Binding {
    /// The session with it.
    pub session: Arc<Session>,
    /// The ports, in the order of the arguments.
    pub ports: Arc<[u16]>,
}

/// The pod of the moment; `None` while there is none.
pub type Bindings = watch::Receiver<Option<Binding>>;

/// A port of this machine.
pub enum Listener {
    /// Of connections.
    Tcp(TcpListener),
    /// Of datagrams.
    Udp(UdpSocket),
}

impl Listener {
    /// Takes a port.
    ///
    /// # Errors
    /// The system's.
    pub async fn bind(address: SocketAddr, protocol: Protocol) -> Result<Self> {
        let bound = match protocol {
            Protocol::Tcp => TcpListener::bind(address).await.map(Self::Tcp),
            Protocol::Udp => UdpSocket::bind(address).await.map(Self::Udp),
        };
        bound.with_context(|| {
            format!("cannot listen on {address} ({protocol}): is the port taken, or the address not ours?")
        })
    }

    /// Where it is.
    ///
    /// # Errors
    /// The system's.
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(match self {
            Self::Tcp(listener) => listener.local_addr()?,
            Self::Udp(socket) => socket.local_addr()?,
        })
    }

    /// Serves. `index` is the place of its port among the arguments.
    pub async fn serve(self, bindings: Bindings, index: usize) {
        match self {
            Self::Tcp(listener) => connections(listener, bindings, index).await,
            Self::Udp(socket) => datagrams(Arc::new(socket), bindings, index).await,
        }
    }
}

/// A flow to the pod that is bound, or that will be in a moment.
async fn flow(bindings: &mut Bindings, index: usize, protocol: Protocol) -> Result<Flow> {
    let usable = |binding: &Option<Binding>| {
        binding.as_ref().is_some_and(|binding| !binding.session.has_ended())
    };
    let limit = Duration::from_secs(BINDING_TIMEOUT_S);
    let bound = tokio::time::timeout(limit, bindings.wait_for(usable)).await;
    let bound = bound.context("no pod is ready")??.clone().context("no pod is ready")?;
    let port = *bound.ports.get(index).context("no such port")?;
    bound.session.flow(port, protocol).await
}

async fn connections(listener: TcpListener, bindings: Bindings, index: usize) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let mut bindings = bindings.clone();
                tokio::spawn(async move {
                    let carried = async {
                        let flow = flow(&mut bindings, index, Protocol::Tcp).await?;
                        connection(stream, flow).await
                    };
                    if let Err(error) = carried.await {
                        eprintln!("flatnet: the connection of {peer} ended: {error:#}");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                eprintln!("flatnet: cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(ACCEPT_RETRY_MS)).await;
            }
        }
    }
}

/// To the end of both directions.
async fn connection(mut stream: TcpStream, flow: Flow) -> Result<()> {
    let Flow { input, mut output, faults } = flow;
    let (mut from_client, mut to_client) = stream.split();
    let outward = async {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
            if input.send(buffer.get(..count).unwrap_or_default()).await.is_err() {
                return;
            }
        }
        input.finish().await;
    };
    let inward = async {
        while let Some(bytes) = output.recv().await {
            if to_client.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = to_client.shutdown().await;
    };
    let mut outward = std::pin::pin!(outward);
    let mut inward = std::pin::pin!(inward);
    tokio::select! {
        // The pod may still answer.
        () = &mut outward => inward.await,
        // The pod has said its last, or is gone: nobody reads on.
        () = &mut inward => {}
    }
    told(faults).await
}

/// What the node said of a flow that has ended.
async fn told(mut faults: mpsc::Receiver<Vec<u8>>) -> Result<()> {
    faults.close();
    let mut text = Vec::new();
    while let Some(part) = faults.recv().await {
        text.extend(part);
    }
    match text.is_empty() {
        true => Ok(()),
        false => Err(anyhow::anyhow!("{}", String::from_utf8_lossy(&text).into_owned())),
    }
}

/// A client of a UDP port.
struct Client {
    datagrams: mpsc::Sender<Vec<u8>>,
    task: AbortHandle,
}

async fn datagrams(socket: Arc<UdpSocket>, bindings: Bindings, index: usize) {
    let mut clients: BTreeMap<SocketAddr, Client> = BTreeMap::new();
    let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
    loop {
        // An error is an earlier datagram's that a client did not take.
        let Ok((count, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let datagram = buffer.get(..count).unwrap_or_default().to_vec();
        if clients.get(&peer).is_none_or(|client| client.task.is_finished()) {
            clients.retain(|_, client| !client.task.is_finished());
            if clients.len() >= MAX_UDP_CLIENTS {
                continue;
            }
            let (sender, waiting) = mpsc::channel(UDP_QUEUE);
            let served = client(Arc::clone(&socket), peer, waiting, bindings.clone(), index);
            let task = tokio::spawn(async move {
                if let Err(error) = served.await {
                    eprintln!("flatnet: the datagrams of {peer} come no further: {error:#}");
                }
            });
            let task = task.abort_handle();
            clients.insert(peer, Client { datagrams: sender, task });
        }
        if let Some(client) = clients.get(&peer) {
            let _ = client.datagrams.try_send(datagram);
        }
    }
}

/// Serves one client until it falls silent or its pod is gone: its next datagram begins anew.
async fn client(
    socket: Arc<UdpSocket>,
    peer: SocketAddr,
    mut datagrams: mpsc::Receiver<Vec<u8>>,
    mut bindings: Bindings,
    index: usize,
) -> Result<()> {
    let Flow { input, mut output, faults } = flow(&mut bindings, index, Protocol::Udp).await?;
    let idle = Duration::from_secs(UDP_IDLE_S);
    let mut until = Instant::now() + idle;
    loop {
        tokio::select! {
            datagram = datagrams.recv() => {
                let Some(datagram) = datagram else { break };
                input.send(&datagram).await?;
            }
            answer = output.recv() => {
                let Some(answer) = answer else { break };
                // One that the client does not take is lost, as datagrams are.
                let _ = socket.send_to(&answer, peer).await;
            }
            () = tokio::time::sleep_until(until) => break,
        }
        until = Instant::now() + idle;
    }
    input.finish().await;
    told(faults).await
}

/// What can be listened on with the words of `--address`.
///
/// # Errors
/// For what is neither an address nor `localhost`.
pub fn addresses(words: &[String]) -> Result<Vec<IpAddr>> {
    let mut addresses = Vec::new();
    for word in words {
        match word.as_str() {
            "localhost" => {
                addresses
                    .extend([IpAddr::from([127, 0, 0, 1]), std::net::Ipv6Addr::LOCALHOST.into()]);
            }
            word => addresses.push(word.parse().with_context(|| {
                format!("--address {word:?} is neither an IP address nor localhost")
            })?),
        }
    }
    Ok(addresses)
}
