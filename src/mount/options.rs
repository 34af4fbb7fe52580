//! The options of a mount, as mount(8) and fstab(5) write them.

use std::fmt;

use crate::config::ReadMode;

/// How a mount behaves; what [`MountFlags::with`] reads and a remount can change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is an option of mount(8)")]
pub struct MountFlags {
    /// Nothing can be changed through it.
    pub read_only: bool,
    /// Reading changes no access times.
    pub no_atime: bool,
    /// The kernel ignores suid and sgid bits.
    pub no_suid: bool,
    /// The kernel opens no device files.
    pub no_dev: bool,
    /// The kernel executes nothing.
    pub no_exec: bool,
    /// How fresh its reads are.
    pub read: ReadMode,
}

/// What an option string asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Flags and mode.
    pub flags: MountFlags,
    /// A mount that is there already is to change.
    pub remount: bool,
}

/// Why an option string cannot be obeyed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Nothing that we know.
    #[error("unknown mount option \"{0}\"")]
    Unknown(String),
    /// Not a read mode.
    #[error("mount option \"{option}\": {wanted}")]
    Read {
        /// As it was given.
        option: String,
        /// What it can be.
        wanted: &'static str,
    },
}

/// Options that are for mount(8), systemd or people.
const FOR_OTHERS: [&str; 18] = [
    "",
    "defaults",
    "async",
    "auto",
    "noauto",
    "nofail",
    "fail",
    "_netdev",
    "user",
    "nouser",
    "users",
    "nousers",
    "owner",
    "group",
    "relatime",
    "norelatime",
    "nostrictatime",
    "loud",
];
const FOR_OTHERS_WITH_VALUE: [&str; 5] = ["x-", "X-", "comment=", "user=", "uhelper="];
/// What mount(8) copies from the kernel's table when a mount is to change.
const OF_THE_KERNEL: [&str; 2] = ["default_permissions", "allow_other"];
const OF_THE_KERNEL_WITH_VALUE: [&str; 4] = ["user_id=", "group_id=", "max_read=", "rootmode="];

impl fmt::Display for MountFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.read_only { "ro" } else { "rw" })?;
        let others = [
            (self.no_atime, "noatime"),
            (self.no_suid, "nosuid"),
            (self.no_dev, "nodev"),
            (self.no_exec, "noexec"),
        ];
        for (_, option) in others.into_iter().filter(|(is_on, _)| *is_on) {
            write!(f, ",{option}")?;
        }
        write!(f, ",read={}", self.read)
    }
}

impl MountFlags {
    /// These flags, changed by a comma-separated list; the last word on a matter counts. What is not
    /// known is an error, or ignored where `sloppy`.
    ///
    /// # Errors
    /// The first option that cannot be obeyed.
    pub fn with(mut self, options: &str, sloppy: bool) -> Result<Wanted, OptionError> {
        let remount = options.split(',').any(|option| option == "remount");
        for option in options.split(',') {
            match option {
                "ro" => self.read_only = true,
                "rw" => self.read_only = false,
                "noatime" => self.no_atime = true,
                "atime" => self.no_atime = false,
                "nosuid" => self.no_suid = true,
                "suid" => self.no_suid = false,
                "nodev" => self.no_dev = true,
                "dev" => self.no_dev = false,
                "noexec" => self.no_exec = true,
                "exec" => self.no_exec = false,
                "remount" => {}
                _ if option.starts_with("read=") => self.read = read_mode(option)?,
                _ if is_for_others(option) || (remount && is_of_the_kernel(option)) => {}
                _ if sloppy => tracing::info!(option, "unknown mount option ignored"),
                _ => return Err(OptionError::Unknown(option.to_owned())),
            }
        }
        Ok(Wanted { flags: self, remount })
    }
}

fn read_mode(option: &str) -> Result<ReadMode, OptionError> {
    let (_, mode) = option.split_once('=').expect("the caller has looked");
    mode.parse().map_err(|wanted| OptionError::Read { option: option.to_owned(), wanted })
}

fn is_for_others(option: &str) -> bool {
    FOR_OTHERS.contains(&option)
        || FOR_OTHERS_WITH_VALUE.iter().any(|prefix| option.starts_with(prefix))
}

fn is_of_the_kernel(option: &str) -> bool {
    OF_THE_KERNEL.contains(&option)
        || OF_THE_KERNEL_WITH_VALUE.iter().any(|prefix| option.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::{MountFlags, OptionError, ReadMode, Wanted};

    fn flags(options: &str) -> MountFlags {
        MountFlags::default().with(options, false).expect("known options").flags
    }

    #[test]
    fn the_last_word_counts() {
        assert_eq!(flags("rw,ro"), MountFlags { read_only: true, ..MountFlags::default() });
        assert_eq!(flags("ro,noatime,rw,atime"), MountFlags::default());
        let all = flags("ro,noatime,nosuid,nodev,noexec,read=eventual");
        let read = ReadMode::Eventual;
        let on = true;
        let wanted =
            MountFlags { read_only: on, no_atime: on, no_suid: on, no_dev: on, no_exec: on, read };
        assert_eq!(all, wanted);
        assert_eq!(flags(&all.to_string()), all);
    }

    /// fstab has options that are not for us.
    #[test]
    fn options_of_others_change_nothing() {
        let others =
            "defaults,noauto,nofail,_netdev,user=me,x-systemd.automount,comment=a b,relatime";
        assert_eq!(flags(others), MountFlags::default());
        assert_eq!(flags(""), MountFlags::default());
    }

    #[test]
    fn what_is_unknown_is_refused_unless_sloppy() {
        let unknown = MountFlags::default().with("ro,quota", false);
        assert_eq!(unknown, Err(OptionError::Unknown("quota".into())));
        let sloppy = MountFlags::default().with("ro,quota", true).expect("ignored");
        assert!(sloppy.flags.read_only);
        let mode = MountFlags::default().with("read=weak", true).expect_err("not a mode");
        assert!(mode.to_string().contains("\"read=weak\": read is \"strong\""), "{mode}");
    }

    /// mount(8) puts what the kernel's table says in front of what is to change.
    #[test]
    fn a_remount_changes_what_it_names() {
        let now = flags("nosuid,read=eventual");
        let copied = "rw,nosuid,relatime,user_id=0,group_id=0,default_permissions,allow_other";
        let wanted = now.with(&format!("{copied},remount,ro"), false);
        let flags = MountFlags { read_only: true, ..now };
        assert_eq!(wanted, Ok(Wanted { flags, remount: true }));
        assert!(now.with("allow_other", false).is_err(), "not ours to be given");
    }
}
