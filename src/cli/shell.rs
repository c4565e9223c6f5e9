//! `quant shell`: completions and the manual page, made from the flags themselves.

use std::io::Write;

use clap::Args;

use crate::error::Result;

#[derive(Args)]
pub struct Shell {
    /// bash, zsh, fish, elvish, powershell, or man for the manual page
    #[arg(value_name = "SHELL|man")]
    what: String,
}

impl Shell {
    pub fn run(&self) -> Result<bool> {
        let mut command = super::command();
        let mut out = Vec::new();
        if self.what == "man" {
            clap_mangen::Man::new(command).render(&mut out)?;
        } else {
            let shell: clap_complete::Shell = self.what.parse().map_err(crate::error::Error::request)?;
            clap_complete::generate(shell, &mut command, "quant", &mut out);
        }
        std::io::stdout().write_all(&out)?;
        Ok(true)
    }
}
