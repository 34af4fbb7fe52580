//! Bytes that could not be committed: every file that was open then says so once, and nobody is shown them.

use std::fs;

use super::support::program::Program;
use super::support::{Cluster, write_and_sync};
use super::{FAILING_SOON, nodes};

/// As Linux does it for a disk that fails: an error of writing is told to each open file once, at its next fsync or
/// close, and to none that was opened later.
#[test]
fn lost_bytes_are_reported_once_to_each_open_file() {
    let cluster = Cluster::up_with(3, &FAILING_SOON);
    let (node, others) = nodes(&cluster);
    let path = cluster.mount(node).join("file");
    write_and_sync(&path, b"old-bytes").expect("write");
    let [mut writer, mut witness, mut closing] = [(); 3].map(|()| Program::with(&path));
    assert_eq!(witness.ask("read f 0 9"), "old-bytes");
    // The one that remains does not lead: nobody has its proposals, so they never happen.
    for other in others {
        cluster.kill(other, "KILL");
    }
    assert_eq!(writer.ask("write f 0 new"), "ok", "taken in");
    assert_eq!(witness.ask("read f 0 9"), "new-bytes", "as on any mount");
    assert_eq!(writer.ask("close-copy f"), "EIO");
    assert_eq!(writer.ask("sync f"), "EIO", "the close of a copy took it from nobody");
    assert_eq!(writer.ask("close-copy f"), "ok");
    for other in others {
        cluster.start(other);
    }
    cluster.settle();

    let mut late = Program::with(&path);
    assert_eq!(late.ask("sync f"), "ok", "opened since");
    assert_eq!(writer.ask("sync f"), "ok", "told before");
    assert_eq!(witness.ask("sync f"), "EIO");
    assert_eq!(witness.ask("sync f"), "ok", "once");
    assert_eq!(closing.ask("close f"), "EIO");
    for program in [&mut writer, &mut witness, &mut late] {
        assert_eq!(
            program.ask("read f 0 9"),
            "old-bytes",
            "the kernel has forgotten what was lost"
        );
        assert_eq!(program.ask("close f"), "ok");
    }
    assert_eq!(fs::read(cluster.mount(others[0]).join("file")).expect("read"), b"old-bytes");
}
