//! A control plane as a process of its own, which a test can kill: the test program again, started
//! with `serve DIRECTORY PORT`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Serves until it is killed; tells its port on standard output.
pub async fn serve(directory: &Path, port: u16) {
    let server = crate::support::start(directory, port).await;
    println!("{}", server.address.port());
    std::io::stdout().flush().expect("the parent listens");
    std::future::pending::<()>().await;
}

/// The process. It ends with its owner.
pub struct ServerProcess(Child);

impl ServerProcess {
    /// Starts it over a directory, and gives its port; 0 takes a free one.
    pub fn start(directory: &Path, port: u16) -> (Self, u16) {
        let mut child = Command::new(std::env::current_exe().expect("a name"))
            .arg("serve")
            .arg(directory)
            .arg(port.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut line = String::new();
        let output = child.stdout.take().expect("a pipe");
        let server = Self(child);
        BufReader::new(output).read_line(&mut line).expect("a line");
        (server, line.trim().parse().expect("the server tells its port"))
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.0.kill().expect("SIGKILL");
        self.0.wait().expect("it ends");
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The body of such a test's `main`: the server, the list of tests that cargo asks for, or the tests.
pub fn main(tests: &[(&str, fn())]) {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.as_slice() {
        [_, verb, directory, port] if verb == "serve" => {
            let port = port.parse().expect("a port");
            block_on(serve(Path::new(directory), port));
        }
        [_, rest @ ..] if rest.iter().any(|argument| argument == "--list") => {
            for (name, _) in tests {
                println!("{name}: test");
            }
        }
        _ => {
            for (name, test) in tests {
                test();
                println!("test {name} ... ok");
            }
        }
    }
}

/// Runs on one thread, as the server does.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}
