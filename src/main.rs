use std::process::ExitCode;

fn main() -> ExitCode {
    quant::cli::main().into()
}
