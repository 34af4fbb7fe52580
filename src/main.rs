//! The `quorumfs` command.

/// An hour of the same load makes glibc's heap grow by an eighth, though nothing more is kept in it; jemalloc's stays
/// (docs/crashes.md).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    quorumfs::cli::main()
}
