//! A directory with everything in it that a file system can hold, and all that can be seen of one.

use std::path::Path;

use super::shell::sh;

const MAKE: &str = r#"
    umask 022
    mkdir -p plain/deep/er odd modes/directory acl/directory xattr/directory sparse links empty
    seq 100000 > plain/numbers; : > plain/nothing; head -c 1500000 /dev/urandom > plain/random

    ln plain/numbers links/one; ln plain/numbers plain/deep/er/two
    ln -s ../plain/numbers links/symlink; ln -P links/symlink links/again
    ln -s nowhere links/dangling; ln -s "$(printf 'x%.0s' $(seq 4000))" links/long

    truncate -s 64M sparse/all
    dd if=plain/random of=sparse/middle bs=4096 seek=4096 count=10 status=none
    truncate -s 40M sparse/middle

    for name in -rf ' leading' 'trailing ' '*' '\' '"' "'" '$HOME' '#x' "$(printf 'new\nline')" \
        "$(printf 'tab\t')" "$(printf 'latin \351')" "$(printf 'bytes \001\377')" 'ünïcödé 漢字' \
        "$(printf 'n%.0s' $(seq 255))"; do
        echo "$name" > "odd/$name"
    done
    mkdir "odd/$(printf 'd\n\377')"; echo inside > "odd/$(printf 'd\n\377')/file"

    for mode in 0000 0400 0644 1644 2755 4755 6711 7777; do
        echo $mode > modes/$mode; chown 1:2 modes/$mode; chmod $mode modes/$mode
    done
    chown 3:4 modes/directory; chmod 3775 modes/directory
    mkfifo modes/fifo; mknod modes/null c 1 3; mknod modes/loop b 7 200
    chown -h 5:6 links/dangling

    echo listed > acl/file; setfacl -m u:1:rwx,g:2:r,m::rx acl/file
    setfacl -m d:u:3:rx,d:g:4:-,u:7:r acl/directory; echo inherited > acl/directory/file

    echo with > xattr/file; setfattr -n user.text -v value xattr/file
    setfattr -n user.binary -v 0x00ff0a xattr/file; setfattr -n user.empty xattr/file
    setfattr -n user.large -v "$(printf 'v%.0s' $(seq 3000))" xattr/directory
    setfattr -n trusted.mine -v root xattr/file; setfattr -n trusted.mine -v root xattr/directory
    setfattr -h -n trusted.link -v symlink links/dangling
    setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 xattr/file

    touch -d '2001-02-03 04:05:06.123456789' plain/numbers
    touch -d '2038-02-03 04:05:06.999999999' plain/random
    touch -h -d '2002-02-03 04:05:06.987654321' links/symlink
    touch -d '2003-02-03 04:05:06.000000001' plain/deep/er plain/deep odd
"#;

/// Types, modes, owners, links, sizes, times, targets; devices; bytes; ACLs; xattrs. A directory's size and
/// links are the file system's own.
const DESCRIBE: &str = r"
    cd $1
    find . -mindepth 1 \( -type d -printf '%P %M %U %G %T@\0' -o -printf '%P %M %U %G %n %s %T@ %l\0' \) |
        sort -z | tr '\0' '\n'
    find . \( -type c -o -type b \) -exec stat --format '%n is %t:%T' {} + | sort
    find . -type f -print0 | sort -z | xargs -0 sha256sum
    find . ! -type l -print0 | sort -z | xargs -0 getfacl -nP
    find . -print0 | sort -z | xargs -0 getfattr -hd -m - -e hex
    echo $(($(du --block-size=1K --summarize sparse | cut -f1) < 1024)) sparse
";

/// Fills the directory `name` of `dir`, which is made.
pub fn make(dir: &Path, name: &str) {
    sh(dir, &format!("mkdir '{name}'; cd '{name}'{MAKE}"), &[]);
}

/// The same for the same tree, wherever it lies.
pub fn describe(dir: &Path, name: &str) -> String {
    let description = sh(dir, DESCRIBE, &[Path::new(name)]);
    assert!(description.ends_with("1 sparse\n"), "{} has lost its holes", dir.display());
    description
}
