//! POSIX access control lists: as on a local file system, and from two mounts at once.

use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use super::beside::{Beside, run};
use super::support::{Cluster, succeed};

/// Modes, owners and lists of everything.
const LOOK: &str = "find . | sort | xargs stat --format '%n %A %u %g %h'; getfacl -nR . | sort";
/// Longer than kernels keep attributes.
const TTL: Duration = Duration::from_secs(3);

#[test]
fn acls_are_set_changed_and_removed_as_elsewhere() {
    let cluster = Cluster::up(3);
    let mut beside = Beside::new(&cluster, "acls");
    for command in [
        "umask 022; touch f; mkdir d",
        "setfacl -m u:1:rwx f",
        "setfacl -m g:2:r-x,o::x f",
        "chmod 640 f",
        "chmod g= f",
        "setfacl -m m::rw f",
        "setfacl -x u:1 f",
        "setfacl -m u:1:r d",
        "chmod 2775 d",
        "chown 1:2 f d",
        "setfacl -n -m u:3:rwx f",
        "setfacl -b f",
        "setfacl -m d:u:1:rwx f",
        "ln -s f l; setfacl -m u:1:r l",
        "setfacl -m u:7:r,g:7:w f; chmod 6755 f",
        "setfacl --set u::r,g::r,o::- f",
        "setfacl -m u:1:r f; cp -p f g; ln f h; mv g i",
        "tar --acls -cf t.tar d f i; rm -r d f i; tar --acls -xpf t.tar; rm t.tar",
        "setfacl -k d; setfacl -b d f i",
        "setfacl -k d; setfacl -b d",
        "python3 -c 'import os; os.removexattr(\"d\", \"system.posix_acl_default\")'",
    ] {
        beside.step(command, LOOK);
    }
}

#[test]
fn default_acls_are_inherited_as_elsewhere() {
    let cluster = Cluster::up(3);
    let mut beside = Beside::new(&cluster, "defaults");
    for command in [
        "mkdir d e; setfacl -m d:u:1:rwx,d:g:2:rx,d:o:rx d",
        "umask 077; touch d/f; mkdir d/s; mkfifo d/p; ln -s x d/l; mknod d/c c 1 3",
        "umask 027; touch e/f; mkdir e/s; mkfifo e/p",
        "umask 0; python3 -c 'import os; os.open(\"d/o\", os.O_CREAT | os.O_RDWR, 0o4631)'",
        "umask 022; mkdir -p d/s/t/u; touch d/s/t/u/v",
        "mv e/s d/moved; mv d/f e/moved; ln d/o e/linked; cp e/f d/copied",
        "setfacl -m d:m::r d; umask 0; touch d/masked; mkdir d/maskeddir",
        "chmod 2770 d; chown 0:7 d; touch d/g; mkdir d/gd",
        "setfacl -k d; setfacl -m d:u::rw,d:g::r,d:o::- d; umask 0; touch d/plain; mkdir d/pd",
        "setfacl -R -k .; umask 022; touch d/none; mkdir d/noned",
    ] {
        beside.step(command, LOOK);
    }
}

#[test]
fn acls_decide_who_may() {
    let cluster = Cluster::up(3);
    let mut beside = Beside::new(&cluster, "may");
    let as_user = |user: u32, groups: &str, command: &str| {
        format!("setpriv --reuid={user} --regid={user} {groups} sh -c '{command}'")
    };
    let try_all: Vec<_> = [(1, "--clear-groups"), (3, "--groups=2"), (4, "--clear-groups")]
        .into_iter()
        .map(|(user, groups)| {
            let tries = "cat f; : >> f; ls d; touch d/of; rm -f d/of; ./f; cd d";
            as_user(user, groups, tries)
        })
        .collect();
    let try_all = try_all.join("; ");
    for command in [
        "umask 077; echo true > f; mkdir d",
        "setfacl -m u:1:r f",
        "setfacl -m u:1:rwx f d",
        "setfacl -m g:2:rx f d",
        "setfacl -m m::r f; setfacl -m m::x d",
        "chmod 777 f; setfacl -m u:4:- f d",
        "setfacl -b f d",
        "chown 1:2 f; chmod 070 f",
    ] {
        beside.step(command, &try_all);
    }
    // Only its owner may set a list; and sgid goes where the owner is not in the group.
    for (user, groups) in [(4, "--clear-groups"), (1, "--groups=2"), (1, "--clear-groups")] {
        beside.step("setfacl -b f; chown 1:2 f; chmod 2755 f", LOOK);
        beside.step(&as_user(user, groups, "setfacl -m u:3:r f"), LOOK);
    }
    beside.step("chmod 2755 f; setfacl -m u:4:r f", LOOK);
}

/// What user 1 gets on a mount from trying to read the file `f`.
fn reads(dir: &Path) -> bool {
    run(dir, "setpriv --reuid=1 --regid=1 --clear-groups cat f").starts_with("bytes")
}

fn setfacl(dir: &Path, arguments: &[&str]) {
    succeed(Command::new("setfacl").args(arguments).current_dir(dir));
}

/// A program that asks for the ACL of the open file `f`, and so has nothing else looked at.
struct Holder {
    program: Child,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Holder {
    fn start(dir: &Path) -> Self {
        const PROGRAM: &str = "import os, sys\n\
            file = os.open('f', os.O_RDONLY)\n\
            for line in sys.stdin:\n\
            \x20   try: print(os.getxattr(file, 'system.posix_acl_access').hex(), flush=True)\n\
            \x20   except OSError as error: print(error.errno, flush=True)\n";
        let mut python = Command::new("python3");
        python.args(["-c", PROGRAM]).current_dir(dir);
        let piped = python.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut program = piped.spawn().expect("there is Python");
        let answers = BufReader::new(program.stdout.take().expect("piped")).lines();
        Self { program, answers }
    }

    /// In hex, or the errno.
    fn acl(&mut self) -> String {
        let questions = self.program.stdin.as_mut().expect("piped");
        questions.write_all(b"?\n").expect("it listens");
        self.answers.next().expect("an answer").expect("text")
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.program.stdin.take());
        self.program.wait().expect("it ends with its input");
    }
}

#[test]
#[ignore = "long"]
fn acls_of_one_mount_count_at_once_on_the_other() {
    let cluster = Cluster::up(3);
    let (here, there) = (cluster.mount(1), cluster.mount(2));
    fs::write(here.join("f"), "bytes").expect("write");
    succeed(Command::new("chmod").arg("640").arg(here.join("f")));
    let mut holder = Holder::start(&there);
    let mtime = |dir: &Path| run(dir, "stat --format %y f");
    let written = mtime(&there);
    for pause in [Duration::ZERO, TTL, Duration::ZERO] {
        for (acl, allowed) in [("u:1:r", true), ("u:1:-", false), ("u:1:rw", true)] {
            setfacl(&here, &["-m", acl, "f"]);
            assert_eq!((reads(&there), reads(&here)), (allowed, allowed), "{acl}");
            let mine = run(&here, "getfattr -d -m system -e hex f");
            assert!(mine.contains("system.posix_acl_access=0x02"), "{mine}");
            assert_eq!(run(&there, "getfattr -d -m system -e hex f"), mine);
            assert!(mine.contains(&format!("0x{}\n", holder.acl())), "{mine}");
            // The kernel keeps a list without a bound, and attributes only for so long.
            thread::sleep(pause);
        }
        setfacl(&here, &["-b", "f"]);
        assert_eq!(holder.acl(), libc::ENODATA.to_string());
        assert!(!reads(&there));
        assert_eq!(run(&there, "getfattr -d -m system -e hex f"), "0\n");
        assert_eq!(run(&there, "stat --format %a f"), "640\n0\n");
    }
    let ctime = |dir: &Path| run(dir, "stat --format %z f");
    let before = ctime(&there);
    setfacl(&here, &["-m", "u:1:r", "f"]);
    assert_ne!(ctime(&there), before, "a list is a change of the inode");
    assert_eq!(ctime(&there), ctime(&here));
    assert_eq!((mtime(&there), mtime(&here)), (written.clone(), written));
}
