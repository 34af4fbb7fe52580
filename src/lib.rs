//! quorumfs: a directory that several machines share and that survives the loss of any minority of
//! them.

// Clocks, environment and threads are forbidden by `clippy.toml` everywhere but in the modules that
// are allowed them here. `fs`, `consensus` and `types` never are.
#[allow(clippy::disallowed_methods, reason = "waits for daemons with deadlines")]
pub mod cli;
pub mod config;
#[allow(clippy::disallowed_methods, reason = "starts threads and reads the clocks")]
pub mod daemon;
pub mod fs;
#[allow(clippy::disallowed_methods, reason = "drives the core: threads and clocks are its job")]
pub mod node;
#[allow(clippy::disallowed_methods, reason = "connections have time-outs")]
pub mod rpc;
#[allow(clippy::disallowed_methods, reason = "flushes and takes snapshots on threads of its own")]
pub mod store;
#[allow(clippy::disallowed_methods, reason = "reads the environment of the service manager")]
pub mod telemetry;
pub mod types;
