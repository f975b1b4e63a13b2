//! `meshctl completions`: a script that completes verbs and flags in a shell.

use anyhow::Result;
use clap::{Args, Command, ValueEnum};
use clap_complete::{Shell, generate};

use crate::output::write;

/// Which shell's.
#[derive(Args)]
pub struct Options {
    /// The shell
    #[arg(value_enum)]
    shell: Known,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Known {
    /// Put it where bash-completion looks: ~/.local/share/bash-completion/completions/meshctl
    Bash,
    /// Put it on the fpath: `meshctl completions zsh > ~/.zfunc/_meshctl`
    Zsh,
    /// Put it where fish looks: ~/.config/fish/completions/meshctl.fish
    Fish,
}

/// Prints the script.
pub fn run(options: &Options, mut command: Command) -> Result<()> {
    let shell = match options.shell {
        Known::Bash => Shell::Bash,
        Known::Zsh => Shell::Zsh,
        Known::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    generate(shell, &mut command, "meshctl", &mut script);
    write(&String::from_utf8(script)?)
}
