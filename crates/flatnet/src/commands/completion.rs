//! `flatnet completion`.

use clap::CommandFactory;

/// Arguments of `flatnet completion`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  flatnet completion bash > /etc/bash_completion.d/flatnet")]
pub struct Arguments {
    /// The shell.
    shell: clap_complete::Shell,
}

/// Prints the script.
pub fn run<C: CommandFactory>(arguments: Arguments) {
    let mut command = C::command();
    clap_complete::generate(arguments.shell, &mut command, "flatnet", &mut std::io::stdout());
}
