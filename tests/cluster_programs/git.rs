//! git: clones, commits, pushes and repacks from several mounts.

use std::path::Path;

use super::shell::{at_once, sh};
use super::support::{Cluster, temporary_dir};

/// What a script needs before it uses git, whoever's machine it runs on.
const IDENTITY: &str = "
    export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1
    export GIT_AUTHOR_NAME=A GIT_AUTHOR_EMAIL=a@example.org
    export GIT_COMMITTER_NAME=C GIT_COMMITTER_EMAIL=c@example.org
";

/// A repository of some size, with a symlink, a program, a tag, a branch and a file of some megabytes.
const MAKE: &str = "
    git init -q -b main origin; cd origin
    for commit in $(seq 20); do
        mkdir -p src/$commit
        for file in $(seq 15); do seq $commit $((commit * file + 40)) > src/$commit/$file; done
        seq $commit >> log
        git add -A; git commit -qm \"commit $commit\"
    done
    seq 400000 > large; ln -s log link; echo '#!/bin/sh' > program; chmod +x program
    git add -A; git commit -qm last
    git tag -a -m release v1; git branch side HEAD~5
    git config receive.denyCurrentBranch updateInstead
";

const COMMITS_AT_ONCE: &str = "
    cd clone$1; git checkout -q -b mine$1
    for commit in $(seq 10); do
        echo $commit > mine$1; git add -A; git commit -qm \"mine $commit\"; git push -q origin mine$1
    done
    git fetch -q origin
";

fn git(dir: &Path, script: &str, arguments: &[&Path]) -> String {
    sh(dir, &format!("{IDENTITY}{script}"), arguments)
}

#[test]
#[ignore = "long"]
fn git_clones_commits_collects_and_checks() {
    let local = temporary_dir("local");
    let cluster = Cluster::up(3);
    let [one, two, three] = [1, 2, 3].map(|node| cluster.mount(node));
    git(local.path(), MAKE, &[]);
    let origin = local.path().join("origin");
    let look = "git -C \"$1\" rev-parse 'HEAD^{tree}' main v1 | tr '\\n' ' '";
    let wanted = git(local.path(), look, &[&origin]);

    git(&one, "git clone -q \"file://$1\" repository", &[&origin]);
    let repository = Path::new("repository");
    let fsck = "git -C repository fsck --full --strict --no-progress";
    for mount in [&one, &two, &three] {
        assert_eq!(git(mount, look, &[repository]), wanted);
        git(mount, fsck, &[]);
        assert_eq!(git(mount, "git -C repository status --porcelain", &[]), "");
    }

    // What is committed on one mount is there on the others.
    git(&two, "cd repository; seq 7 > new; git rm -q log; git add -A; git commit -qm second", &[]);
    let head = git(&two, "git -C repository rev-parse HEAD", &[]);
    assert_eq!(git(&one, "git -C repository rev-parse HEAD", &[]), head);
    git(&one, "git -C repository gc -q --aggressive --prune=now", &[]);
    git(&three, fsck, &[]);
    let counted = git(&three, "git -C repository count-objects -v", &[]);
    assert!(counted.contains("count: 0\n") && counted.contains("packs: 1\n"), "{counted}");
    assert_eq!(git(&three, "git -C repository status --porcelain", &[]), "");

    // A local clone shares its packs by hard links.
    git(&three, "git clone -q repository linked; git -C linked fsck --full --no-progress", &[]);
    let links = git(&two, "stat --format %h linked/.git/objects/pack/*.pack", &[]);
    assert_eq!(links, "2\n");
    git(&two, "rm -r linked; git -C repository fsck --full --no-progress", &[]);

    // Two mounts commit and push at once.
    git(&one, "git clone -q --bare repository shared", &[]);
    git(&one, "git clone -q shared clone1; git clone -q shared clone2", &[]);
    at_once(&[&one, &two], &format!("{IDENTITY}{COMMITS_AT_ONCE}"));
    git(&three, "git -C shared fsck --full --strict --no-progress", &[]);
    for branch in ["mine1", "mine2"] {
        let log = format!("git -C shared log --format=%s {branch} -- {branch}");
        let wanted: Vec<_> = (1..=10).rev().map(|commit| format!("mine {commit}")).collect();
        assert_eq!(git(&three, &log, &[]).lines().collect::<Vec<_>>(), wanted);
    }

    // And back.
    git(&three, "git -C repository push -q origin main", &[]);
    assert_eq!(git(local.path(), "git -C origin rev-parse HEAD", &[]), head);
    let archive = "git -C \"$1\" archive HEAD | sha256sum";
    let archived = git(local.path(), archive, &[&origin]);
    assert_eq!(git(&two, archive, &[repository]), archived);
    git(local.path(), "git -C origin fsck --full --no-progress", &[]);
    cluster.settle();
}
