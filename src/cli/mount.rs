//! `quorumfs mount`, `quorumfs umount`, and the helper that mount(8) calls for the type `quorumfs`: each asks
//! this machine's daemon, which does it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::cli::client::Admin;
use crate::cli::{args, mountpoint, probe};
use crate::rpc::admin::MountRequest;

/// The port where none is given, as in the example of a configuration.
const DEFAULT_PORT: u16 = 7401;
/// What mount(8) calls helpers: by the type in fstab, and by the one in the kernel's table at a remount.
const HELPERS: [&str; 2] = ["mount.quorumfs", "mount.fuse.quorumfs"];
/// Exit codes of mount(8).
const USAGE: u8 = 1;
const FAILURE: u8 = 32;

#[derive(Debug, clap::Args)]
pub(crate) struct MountArgs {
    /// This machine's daemon, and the directory of the file system to show: HOST:PORT[:/SUBDIR].
    spec: String,
    /// Where to mount.
    dir: PathBuf,
    /// Options of mount(8), separated by commas; among them ro, noatime,
    /// read=strong|bounded=SECONDS|eventual, and remount, which changes a mount.
    #[arg(short, value_name = "OPTIONS")]
    options: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct UmountArgs {
    /// Where it is mounted.
    dir: PathBuf,
    /// Takes the mount away at once; programs go on with the files that they have open.
    #[arg(short, long)]
    lazy: bool,
}

/// As mount(8) calls it: `mount.quorumfs SPEC DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`.
#[derive(Debug, Parser)]
#[command(name = "mount.quorumfs", version)]
struct Helper {
    #[command(flatten)]
    mount: MountArgs,
    /// Ignores options that are unknown.
    #[arg(short)]
    sloppy: bool,
    /// Does everything but mount.
    #[arg(short)]
    fake: bool,
    /// Writes no mtab; there is none.
    #[arg(short)]
    no_mtab: bool,
    #[arg(short)]
    verbose: bool,
    /// Another mount namespace: not possible, the daemon mounts in its own.
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<PathBuf>,
    /// The type, which is known.
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<String>,
}

pub(crate) async fn mount(args: &MountArgs) -> Result<()> {
    request(args, false).await.map_err(|(_, error)| error)
}

/// Asks the daemon that the kernel's table names; where that is gone, takes away what it left.
pub(crate) async fn umount(args: &UmountArgs) -> Result<()> {
    let dir = mountpoint::resolve(&std::path::absolute(&args.dir)?)?;
    let mounts = mountpoint::mounts()?;
    let top = mounts.iter().rfind(|mount| mount.point == dir);
    let ours = top.filter(|mount| mount.fs_type == "fuse.quorumfs");
    let mounted = ours.with_context(|| format!("{} is not a quorumfs mount", dir.display()))?;
    let (address, _) = parse_spec(&mounted.source)?;
    match Admin::connect(&address).await {
        Ok(mut admin) => admin.unmount(&dir, args.lazy).await,
        Err(_) if probe::probe(&dir).await? == probe::Finding::Dead => mountpoint::unmount(&dir),
        Err(error) => Err(error),
    }
}

/// Whether this process was started as mount(8) starts helpers.
pub(crate) fn is_helper() -> bool {
    let program = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    HELPERS.iter().any(|helper| program.file_name().is_some_and(|name| name == *helper))
}

/// The helper, with the exit codes that mount(8) documents.
pub(crate) fn helper() -> ExitCode {
    let helper = match Helper::try_parse_from(std::env::args_os()) {
        Ok(helper) => helper,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    match args::block_on(async { Ok(run_helper(&helper).await) }) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err((code, error))) => {
            eprintln!("mount.quorumfs: {}", args::sentence(&error));
            ExitCode::from(code)
        }
        Err(error) => {
            eprintln!("mount.quorumfs: {}", args::sentence(&error));
            ExitCode::from(FAILURE)
        }
    }
}

async fn run_helper(helper: &Helper) -> Result<(), (u8, anyhow::Error)> {
    if let Some(namespace) = &helper.namespace {
        let path = namespace.display();
        return Err((
            USAGE,
            anyhow::anyhow!("cannot mount in {path}: the daemon mounts in its own"),
        ));
    }
    if helper.fake {
        return parse_spec(&helper.mount.spec).map(drop).map_err(|error| (USAGE, error));
    }
    request(&helper.mount, helper.sloppy).await
}

async fn request(args: &MountArgs, sloppy: bool) -> Result<(), (u8, anyhow::Error)> {
    let usage = |error| (USAGE, error);
    let (address, subtree) = parse_spec(&args.spec).map_err(usage)?;
    let point = absolute(&args.dir).map_err(usage)?;
    let request = MountRequest {
        source: args.spec.clone(),
        subtree,
        point: OsString::from(point).into_encoded_bytes().into(),
        options: args.options.join(","),
        sloppy,
    };
    let mut admin = Admin::connect(&address).await.map_err(|error| (FAILURE, error))?;
    admin
        .mount(request)
        .await
        .map_err(|(is_usage, error)| (if is_usage { USAGE } else { FAILURE }, error))
}

/// `HOST:PORT:/SUBDIR`, of which the port and what comes after can be left out.
pub(crate) fn parse_spec(spec: &str) -> Result<(String, String)> {
    let (address, subtree) = match spec.split_once(":/") {
        Some((address, subtree)) => (address, subtree.trim_matches('/')),
        None => (spec, ""),
    };
    let has_port = address.rsplit_once(':').is_some_and(|(host, port)| {
        port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']'))
    });
    let host_only = !address.contains(':') || address.ends_with(']');
    ensure!(
        !address.is_empty() && !address.contains('/') && (has_port || host_only),
        "\"{spec}\" is not HOST:PORT:/SUBDIR, such as 127.0.0.1:{DEFAULT_PORT}:/models"
    );
    let port = if has_port { String::new() } else { format!(":{DEFAULT_PORT}") };
    Ok((format!("{address}{port}"), subtree.to_owned()))
}

/// The daemon has another working directory.
fn absolute(dir: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(dir).context("cannot find the working directory")?;
    let is_link = fs::read_link(&absolute).is_ok();
    if is_link {
        return fs::canonicalize(&absolute)
            .with_context(|| format!("cannot follow {}", dir.display()));
    }
    Ok(absolute)
}

#[cfg(test)]
mod tests {
    use super::{Helper, parse_spec};
    use clap::{CommandFactory, Parser};

    #[test]
    fn specs() {
        let parsed = |spec: &str| parse_spec(spec).expect("a spec");
        let models = ("127.0.0.1:7402".to_owned(), "models/a b".to_owned());
        assert_eq!(parsed("127.0.0.1:7402:/models/a b"), models);
        assert_eq!(parsed("localhost:/x/").0, "localhost:7401");
        assert_eq!(parsed("[::1]:7402:/x"), ("[::1]:7402".to_owned(), "x".to_owned()));
        assert_eq!(parsed("[::1]:/"), ("[::1]:7401".to_owned(), String::new()));
        assert_eq!(parsed("node:7402").1, "");
        for wrong in ["", ":/x", "::1:/x", "node:port:/x", "/dev/sda"] {
            assert!(parse_spec(wrong).is_err(), "{wrong}");
        }
    }

    /// As util-linux calls it.
    #[test]
    fn the_arguments_of_mount() {
        Helper::command().debug_assert();
        let called = "mount.quorumfs 127.0.0.1:7401:/ /mnt -sfnv -o ro,noatime -t fuse.quorumfs";
        let helper = Helper::try_parse_from(called.split(' ')).expect("understood");
        assert!(helper.sloppy && helper.fake && helper.no_mtab && helper.verbose);
        assert_eq!(helper.mount.options, ["ro,noatime"]);
    }
}
