//! Programs on the mount: executed there, also when another mount has just written them, and busy while
//! they run.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use super::support::program::Program;
use super::support::{
    Cluster, PATIENCE, succeed, temporary_dir, text, wait_until, write_and_close,
};

fn make_executable(path: &Path) {
    fs::set_permissions(path, Permissions::from_mode(0o755)).expect("chmod");
}

fn install(program: &str, path: &Path) {
    write_and_close(path, &fs::read(program).expect("it is installed")).expect("write");
    make_executable(path);
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

fn output(program: &Path, argument: &str) -> String {
    text(&succeed(Command::new(program).arg(argument)).stdout)
}

#[test]
fn what_one_mount_installs_the_others_execute() {
    let cluster = Cluster::up(3);
    let [one, two, three] = [1, 2, 3].map(|node| cluster.mount(node));
    install("/bin/cat", &one.join("program"));
    for mount in [&two, &three, &one] {
        let mut running = Program::spawn(&mut Command::new(mount.join("program")));
        assert_eq!(running.ask("echoed"), "echoed");
    }
    // Overwritten in place, where other kernels have its pages; and back.
    for (program, said) in [("/bin/echo", "hello\n"), ("/bin/cat", ""), ("/bin/echo", "hello\n")] {
        install(program, &three.join("program"));
        let argument = if said.is_empty() { "/dev/null" } else { "hello" };
        for mount in [&two, &three, &one] {
            assert_eq!(output(&mount.join("program"), argument), said, "{program}");
        }
    }
    // Scripts, with an interpreter outside and one beside it.
    write_and_close(&two.join("script"), b"#!/bin/sh\necho \"$0 says $1\"\n").expect("write");
    make_executable(&two.join("script"));
    for mount in [&one, &three] {
        let script = mount.join("script");
        assert_eq!(output(&script, "hello"), format!("{} says hello\n", script.display()));
    }
    let interpreter = one.join("program");
    let shebang = format!("#!{} printed\n", interpreter.display());
    write_and_close(&three.join("interpreted"), shebang.as_bytes()).expect("write");
    make_executable(&three.join("interpreted"));
    let script = one.join("interpreted");
    assert_eq!(output(&script, "hello"), format!("printed {} hello\n", script.display()));

    // Without the permission nobody executes, on whichever mount.
    fs::set_permissions(two.join("program"), Permissions::from_mode(0o644)).expect("chmod");
    for mount in [&one, &two, &three] {
        let refused = Command::new(mount.join("program")).output();
        assert_eq!(errno(refused), Some(libc::EACCES));
    }
}

/// What happens to a program that runs: the same in a directory of a local file system.
fn busy_programs(dir: &Path, installer: &Path) {
    let path = dir.join("program");
    install("/bin/cat", &installer.join("program"));
    let mut running = Program::spawn(&mut Command::new(&path));
    assert_eq!(running.ask("runs"), "runs");
    assert_eq!(errno(File::options().write(true).open(&path)), Some(libc::ETXTBSY));
    assert_eq!(errno(File::create(&path)), Some(libc::ETXTBSY));
    let cut = "import os, sys; os.truncate(sys.argv[1], 0)";
    let cut = Command::new("python3").args(["-c", cut]).arg(&path).output().expect("python3 runs");
    assert!(text(&cut.stderr).contains("Text file busy"), "{}", text(&cut.stderr));
    File::open(&path).expect("reading is allowed");

    // Replaced, it goes on as what it was; who starts it now starts the new one.
    install("/bin/echo", &installer.join("new"));
    fs::rename(installer.join("new"), installer.join("program")).expect("rename");
    assert_eq!(output(&path, "replaced"), "replaced\n");
    assert_eq!(running.ask("still runs"), "still runs");
    let image = fs::read(format!("/proc/{}/exe", running.pid())).expect("read");
    assert!(image == fs::read("/bin/cat").expect("read"), "its image is whole");
    drop(File::options().write(true).open(&path).expect("this one is not busy"));
    fs::remove_file(installer.join("program")).expect("unlink");
    assert_eq!(running.ask("and still"), "and still");
    running.kill();

    // The other way round: who writes to it keeps it from being executed.
    install("/bin/echo", &installer.join("program"));
    let writer = File::options().append(true).open(&path).expect("open");
    assert_eq!(errno(Command::new(&path).output()), Some(libc::ETXTBSY));
    drop(writer);
    wait_until(PATIENCE, "nobody to write to it", || {
        // Programs that are being started inherit descriptors for a moment.
        Command::new(&path).output().is_ok().then_some(())
    });
}

#[test]
fn programs_that_run_are_busy_as_elsewhere() {
    let local = temporary_dir("local");
    busy_programs(local.path(), local.path());
    let cluster = Cluster::up(3);
    busy_programs(&cluster.mount(2), &cluster.mount(2));
    busy_programs(&cluster.mount(2), &cluster.mount(1));
    cluster.settle();
}
