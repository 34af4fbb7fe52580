//! rsync and tar: everything goes into the cluster and comes back, and nothing of it differs.

use std::path::Path;

use super::shell::{assert_same, sh};
use super::support::{Cluster, temporary_dir, tool};
use super::tree::{describe, make};

#[test]
#[ignore = "long: it needs the programs rsync, setfacl and setfattr"]
fn rsync_there_and_back() {
    for (name, package) in [("rsync", "rsync"), ("setfacl", "acl"), ("setfattr", "attr")] {
        tool(name, &format!("apt-get install {package}"));
    }
    let local = temporary_dir("local");
    let cluster = Cluster::up(3);
    make(local.path(), "from");
    let copy = "rsync -aHAXS --delete --modify-window=-1 from/ \"$1/to\"";
    let compare = "rsync -aHAXnic --delete --modify-window=-1 from/ \"$1/to/\"";
    let check = || {
        let wanted = describe(local.path(), "from");
        for node in 1..=3 {
            let mount = cluster.mount(node);
            assert_same(&describe(&mount, "to"), &wanted, "in the cluster");
            assert_eq!(sh(local.path(), compare, &[&mount]), "");
        }
    };
    sh(local.path(), copy, &[&cluster.mount(1)]);
    check();
    let change =
        "cd from; rm -r odd/-rf acl; echo more >> plain/numbers; ln -f plain/random links/one
        mv modes/0644 empty; setfattr -x user.text xattr/file; setfacl -m u:9:x plain/deep
        dd if=plain/random of=sparse/all bs=4096 seek=500 count=3 conv=notrunc status=none";
    sh(local.path(), change, &[]);
    sh(local.path(), copy, &[&cluster.mount(2)]);
    check();
    sh(local.path(), "rsync -aHAXS --modify-window=-1 \"$1/to/\" back", &[&cluster.mount(3)]);
    assert_same(&describe(local.path(), "back"), &describe(local.path(), "from"), "back");
    let compare = "rsync -aHAXnic --delete --modify-window=-1 from/ back/";
    assert_eq!(sh(local.path(), compare, &[]), "");
    cluster.settle();
}

#[test]
#[ignore = "long: it needs the programs setfacl and setfattr"]
fn tar_there_and_back() {
    const TAR: &str = "tar --sparse --acls --xattrs --xattrs-include='*' --numeric-owner";
    for (name, package) in [("setfacl", "acl"), ("setfattr", "attr")] {
        tool(name, &format!("apt-get install {package}"));
    }
    let local = temporary_dir("local");
    let cluster = Cluster::up(3);
    make(local.path(), "from");
    let wanted = describe(local.path(), "from");
    sh(local.path(), &format!("{TAR} -C from -cf \"$1/tar\" ."), &[&cluster.mount(1)]);
    sh(&cluster.mount(2), &format!("mkdir to; {TAR} -C to -xpf tar"), &[]);
    for node in 1..=3 {
        assert_same(&describe(&cluster.mount(node), "to"), &wanted, "in the cluster");
        let compare = format!("{TAR} -C to --compare -f tar");
        assert_eq!(sh(&cluster.mount(node), &compare, &[]), "");
    }
    let back =
        format!("mkdir back; {TAR} -C \"$1/to\" -cf back.tar .; {TAR} -C back -xpf back.tar");
    sh(local.path(), &back, &[&cluster.mount(3)]);
    assert_same(&describe(local.path(), "back"), &wanted, "back");
    // Through pipes, from one directory of the cluster to another.
    let pipe = format!("mkdir again; {TAR} -C to -c . | {TAR} -C again -xp");
    sh(&cluster.mount(1), &pipe, &[]);
    assert_same(&describe(&cluster.mount(2), "again"), &wanted, "again");
    sh(&cluster.mount(3), "rm -r to again tar", &[]);
    assert_eq!(sh(&cluster.mount(1), "ls -A", &[] as &[&Path]), "");
    cluster.settle();
}
