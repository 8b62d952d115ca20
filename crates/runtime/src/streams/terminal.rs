//! The controlling side of a pseudo terminal whose other side a command in a container has.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use serde::Deserialize;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::CHUNK_BYTES;
use super::channels::{Channel, Output};

/// Largest resize message, bytes.
const MAX_RESIZE_BYTES: usize = 4096;

/// Columns and rows of a client's terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// The sizes that a client sends: JSON documents, one behind the other.
#[derive(Default)]
pub struct Sizes(Vec<u8>);

impl Sizes {
    /// Takes bytes and gives the last size in them that is whole.
    pub fn newest(&mut self, bytes: &[u8]) -> Option<Size> {
        self.0.extend_from_slice(bytes);
        let mut documents = serde_json::Deserializer::from_slice(&self.0).into_iter::<Size>();
        let mut newest = None;
        let mut broken = false;
        for document in documents.by_ref() {
            match document {
                Ok(size) => newest = Some(size),
                Err(error) => {
                    broken = !error.is_eof();
                    break;
                }
            }
        }
        let taken = documents.byte_offset();
        self.0.drain(..taken);
        if broken || self.0.len() > MAX_RESIZE_BYTES {
            self.0.clear();
        }
        newest
    }
}

/// Tells the programs on the terminal its size.
pub fn resize(terminal: &AsyncFd<OwnedFd>, size: Size) {
    let fd = terminal.get_ref().as_fd();
    if let Err(error) = pause::terminal::resize(fd, size.width, size.height) {
        tracing::debug!("terminal not resized: {error}");
    }
}

/// To the end of what the programs print.
pub async fn carry_output(from: Arc<AsyncFd<OwnedFd>>, to: Output) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let Ok(mut ready) = from.readable().await else { return };
        let read = ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), &mut buffer)?));
        match read {
            // A terminal that nobody holds open any more gives an error instead of an end.
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(count)) => {
                let bytes = buffer.get(..count).unwrap_or_default();
                if !to.send(Channel::Stdout, bytes).await {
                    return;
                }
            }
            Err(_would_block) => {}
        }
    }
}

/// Types what the client sends.
pub async fn type_input(to: Arc<AsyncFd<OwnedFd>>, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = queue.recv().await {
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let Ok(mut ready) = to.writable().await else { return };
            match ready.try_io(|fd| Ok(nix::unistd::write(fd.get_ref(), rest)?)) {
                Ok(Ok(count)) => rest = rest.get(count..).unwrap_or_default(),
                Ok(Err(_)) => return,
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_whole_size_counts_however_it_is_cut() {
        let mut sizes = Sizes::default();
        let size = |width, height| Some(Size { width, height });
        let cases = [
            (r#"{"Width":80,"Height":24}"#, size(80, 24)),
            ("\n{\"Width\":1,", None),
            (r#""Height":2}{"Width":3,"Height":4}"#, size(3, 4)),
            ("nonsense", None),
            (r#"{"Width":5,"Height":6}"#, size(5, 6)),
            (r#"{"Width":70000,"Height":6}"#, None),
            (r#"{"Width":7,"Height":8}"#, size(7, 8)),
        ];
        for (bytes, expected) in cases {
            assert_eq!(sizes.newest(bytes.as_bytes()), expected, "{bytes}");
        }
    }
}
