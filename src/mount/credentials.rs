//! What FUSE does not say of who asks: supplementary groups and capabilities, from `/proc`.

use std::fs;

use super::core::Caller;

/// `linux/capability.h`.
const CAP_FSETID: u32 = 4;

impl Caller {
    /// Whether it may leave sgid on a file of this group: it is in the group or privileged (the kernel's
    /// `in_group_or_capable`). The kernel decides so too, but its flag needs `SETXATTR_EXT`. A caller
    /// that cannot be looked at (another pid namespace) may not.
    pub(super) fn may_leave_sgid(self, gid: u32) -> bool {
        if self.gid == gid {
            return true;
        }
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid));
        status.is_ok_and(|status| is_in_group_or_capable(&status, gid))
    }
}

/// Judges by a `/proc/PID/status` (proc_pid_status(5)).
fn is_in_group_or_capable(status: &str, gid: u32) -> bool {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim()
    };
    let capabilities = u64::from_str_radix(field("CapEff:"), 16).unwrap_or(0);
    let gid = gid.to_string();
    capabilities >> CAP_FSETID & 1 == 1 || field("Groups:").split(' ').any(|group| group == gid)
}

#[cfg(test)]
mod tests {
    use super::is_in_group_or_capable;

    #[test]
    fn groups_and_capabilities_count() {
        let status = |capabilities: &str| {
            format!("Name:\tsh\nGid:\t7\t7\t7\t7\nGroups:\t4 24 1000 \nCapEff:\t{capabilities}\n")
        };
        let nobody = status("0000000000000000");
        assert!(is_in_group_or_capable(&nobody, 24) && is_in_group_or_capable(&nobody, 1000));
        assert!(!is_in_group_or_capable(&nobody, 2) && !is_in_group_or_capable(&nobody, 100));
        assert!(is_in_group_or_capable(&status("000001ffffffffff"), 2));
        assert!(is_in_group_or_capable(&status("0000000000000010"), 2));
        assert!(!is_in_group_or_capable(&status("0000000000000008"), 2));
        assert!(!is_in_group_or_capable("", 0), "nothing is known");
    }
}
