//! The `quorumfs` command.

fn main() -> std::process::ExitCode {
    quorumfs::cli::main()
}
