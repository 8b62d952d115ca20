//! Clients that are attached to containers: what they type goes into the container's input, and
//! what it prints goes to them as well as into its log. Nothing here blocks. Output that a client
//! has not taken yet keeps the container's next output waiting, so that none is lost and little is
//! kept here.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::{read, write};

use crate::launch;
use crate::log::Stream;

/// Bytes of input read at a time.
const INPUT_BYTES: usize = 16 * 1024;

/// A descriptor that is written to as it has room.
pub struct Outlet {
    to: OwnedFd,
    pending: Vec<u8>,
    /// Closed once all of it is written.
    ends: bool,
}

impl Outlet {
    /// Takes the descriptor over.
    pub fn new(to: OwnedFd) -> Result<Self, String> {
        launch::set_nonblocking(&to)?;
        Ok(Self { to, pending: Vec::new(), ends: false })
    }

    /// For polling, while something waits for room.
    pub fn waiting(&self) -> Option<BorrowedFd<'_>> {
        (!self.pending.is_empty()).then(|| self.to.as_fd())
    }

    /// Queues bytes.
    fn give(&mut self, bytes: &[u8]) {
        if !self.ends {
            self.pending.extend_from_slice(bytes);
        }
    }

    /// Writes what there is room for. False once it is to be closed: everything is written, or
    /// nobody reads any more.
    fn flush(&mut self) -> bool {
        while !self.pending.is_empty() {
            match write(&self.to, &self.pending) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(Errno::EAGAIN) => return true,
                Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
        self.pending = Vec::new();
        !self.ends
    }
}

/// The way into a container.
#[derive(Default)]
pub struct Input(Option<Outlet>);

impl Input {
    /// By a pipe or a terminal.
    pub fn new(to: OwnedFd) -> Result<Self, String> {
        Ok(Self(Some(Outlet::new(to)?)))
    }

    /// For polling, while something waits for room.
    pub fn waiting(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().and_then(Outlet::waiting)
    }

    /// Writes what there is room for.
    pub fn flush(&mut self) {
        self.0.take_if(|outlet| !outlet.flush());
    }

    /// Nothing more comes.
    pub fn end(&mut self) {
        if let Some(outlet) = &mut self.0 {
            outlet.ends = true;
        }
        self.flush();
    }
}

/// One attached client.
pub struct Attachment {
    /// The container.
    pub container: String,
    /// What the client types, until its end.
    input: Option<OwnedFd>,
    stdout: Option<Outlet>,
    stderr: Option<Outlet>,
    /// Whether the end of its input was meant, and is not that of a runtime that was killed.
    input_ends: bool,
}

impl Attachment {
    /// With the three descriptors that came with the request.
    pub fn new(container: String, [input, stdout, stderr]: [OwnedFd; 3]) -> Result<Self, String> {
        launch::set_nonblocking(&input)?;
        Ok(Self {
            container,
            input: Some(input),
            stdout: Some(Outlet::new(stdout)?),
            stderr: Some(Outlet::new(stderr)?),
            input_ends: false,
        })
    }

    /// What to poll: the client's input where the container can take more, and its output where
    /// that waits for room.
    pub fn polled(&self, input: &Input) -> (Option<BorrowedFd<'_>>, Vec<BorrowedFd<'_>>) {
        let takes_more = input.waiting().is_none();
        let reads = self.input.as_ref().filter(|_| takes_more).map(AsFd::as_fd);
        let outlets = [&self.stdout, &self.stderr];
        (reads, outlets.into_iter().flatten().filter_map(Outlet::waiting).collect())
    }

    /// Reads some of what the client has typed. Returns true once all of an input that was meant
    /// to end is read.
    pub fn type_into(&mut self, to: &mut Input) -> bool {
        let Some(from) = &self.input else { return self.input_ends };
        let mut buffer = [0_u8; INPUT_BYTES];
        match read(from, &mut buffer) {
            Ok(count @ 1..) => {
                match &mut to.0 {
                    Some(outlet) => outlet.give(&buffer[..count]),
                    None => self.input = None, // The client learns that nobody reads.
                }
                to.flush();
                false
            }
            Err(Errno::EAGAIN | Errno::EINTR) => false,
            Ok(0) | Err(_) => {
                self.input = None;
                self.input_ends
            }
        }
    }

    /// All that the client has typed before it went. Returns as [`Attachment::type_into`] does.
    pub fn type_rest(&mut self, to: &mut Input) -> bool {
        // What fits into its pipe and no more: nobody writes into it any longer.
        let mut buffer = [0_u8; INPUT_BYTES];
        while let (Some(from), Some(outlet)) = (&self.input, &mut to.0) {
            match read(from, &mut buffer) {
                Ok(count @ 1..) => outlet.give(&buffer[..count]),
                Err(Errno::EINTR) => {}
                Ok(0) | Err(_) => self.input = None,
            }
        }
        to.flush();
        self.input_ends
    }

    /// The client says that its input ends. Returns as [`Attachment::type_into`] does.
    pub fn end_input(&mut self) -> bool {
        self.input_ends = true;
        self.input.is_none()
    }

    /// Whether the client has not taken all yet of what it was given of a stream.
    pub fn is_behind(&self, stream: Stream) -> bool {
        let outlet = self.outlet(stream).as_ref().filter(|outlet| !outlet.ends);
        outlet.is_some_and(|outlet| outlet.waiting().is_some())
    }

    /// Gives the client output.
    pub fn give(&mut self, stream: Stream, bytes: &[u8]) {
        if let Some(outlet) = self.outlet_mut(stream) {
            outlet.give(bytes);
        }
        self.flush();
    }

    /// No more comes of a stream.
    pub fn end(&mut self, stream: Stream) {
        if let Some(outlet) = self.outlet_mut(stream) {
            outlet.ends = true;
        }
        self.flush();
    }

    /// The container has ended. Its successor of the same name is none of this client's.
    pub fn finish(&mut self) {
        self.input = None;
        self.end(Stream::Stdout);
        self.end(Stream::Stderr);
    }

    /// Writes what there is room for.
    pub fn flush(&mut self) {
        for outlet in [&mut self.stdout, &mut self.stderr] {
            outlet.take_if(|outlet| !outlet.flush());
        }
    }

    fn outlet(&self, stream: Stream) -> &Option<Outlet> {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }

    fn outlet_mut(&mut self, stream: Stream) -> &mut Option<Outlet> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}
