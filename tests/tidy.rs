//! Keeps the layout true: who may import whom, what the deterministic modules may not touch, how
//! long a file may be, and that each says what it is for.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const MAX_LINES: usize = 600;

/// Section 1 of the design: a module and what it may import of ours, itself apart.
const MAY_IMPORT: [(&str, &[&str]); 15] = [
    ("mutants", &[]),
    ("types", &[]),
    ("fs", &["mutants", "types"]),
    ("consensus", &["mutants", "types"]),
    ("store", &["mutants", "types", "fs"]),
    ("offline", &["types", "fs", "store"]),
    ("config", &["types"]),
    ("mountinfo", &[]),
    ("guardian", &["types", "mountinfo"]),
    ("telemetry", &["types"]),
    ("node", &["types", "fs", "consensus", "store", "config", "telemetry"]),
    ("rpc", &["types", "fs", "consensus", "store", "config", "telemetry", "node"]),
    (
        "mount",
        &[
            "types",
            "fs",
            "consensus",
            "store",
            "config",
            "telemetry",
            "mountinfo",
            "guardian",
            "node",
        ],
    ),
    (
        "daemon",
        &[
            "types",
            "fs",
            "consensus",
            "store",
            "config",
            "telemetry",
            "guardian",
            "node",
            "rpc",
            "mount",
        ],
    ),
    (
        "cli",
        &[
            "types",
            "fs",
            "consensus",
            "store",
            "offline",
            "config",
            "telemetry",
            "mountinfo",
            "guardian",
            "node",
            "rpc",
            "mount",
            "daemon",
        ],
    ),
];

/// A crate, and the only modules that use it.
const ONLY_IN: [(&str, &[&str]); 8] = [
    ("anyhow", &["cli", "daemon"]),
    ("clap", &["cli"]),
    ("fuser", &["mount"]),
    ("sled", &["store"]),
    ("raft_engine", &["store"]),
    ("raft", &["consensus", "store", "node", "rpc"]),
    ("tonic", &["rpc", "daemon", "cli"]),
    ("tokio", &["node", "rpc", "mount", "daemon", "cli"]),
];

/// What would make two replicas, or two runs under one seed, differ: types, crates, and modules of
/// the standard library.
const UNSTABLE_TYPES: [&str; 5] = ["SystemTime", "Instant", "HashMap", "HashSet", "RandomState"];
const UNSTABLE_CRATES: [&str; 3] = ["rand", "getrandom", "tracing"];
const UNSTABLE_STD: [&str; 5] = ["thread", "env", "process", "net", "fs"];

const DETERMINISTIC: [&str; 3] = ["types", "fs", "consensus"];

/// Channels that take any number of messages, and what bounds these. `docs/limits.md` has them.
const UNBOUNDED: [(&str, usize, &str); 5] = [
    (
        "node/start.rs",
        4,
        "the window of Raft, and of this node's own mutations; the ends of its threads",
    ),
    ("node/locks.rs", 1, "each delegated inode is named once"),
    ("rpc/stage_queue.rs", 1, "the budget of bytes on their way (node/staging.rs)"),
    ("rpc/peers.rs", 1, "counted in bytes: MAX_QUEUED"),
    ("mount/waiting.rs", 1, "a test"),
];

/// A source file without its comments, strings and characters.
struct Source {
    path: PathBuf,
    /// The module at the root of the crate that it belongs to.
    module: String,
    text: String,
    code: String,
}

#[test]
fn modules_import_only_what_lies_below_them() {
    let mut problems = Vec::new();
    for source in sources() {
        let allowed = MAY_IMPORT.iter().find(|(module, _)| *module == source.module);
        let Some((_, allowed)) = allowed else {
            problems.push(format!("{}: add it to MAY_IMPORT", source.path.display()));
            continue;
        };
        for import in imports(&source.code, "crate::") {
            let is_module = MAY_IMPORT.iter().any(|(module, _)| *module == import);
            if is_module && import != source.module && !allowed.contains(&import.as_str()) {
                problems.push(format!("{}: imports {import}", source.path.display()));
            }
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn libraries_stay_where_they_belong() {
    let mut problems = Vec::new();
    for source in sources() {
        for (library, modules) in ONLY_IN {
            if uses_crate(&source.code, library) && !modules.contains(&source.module.as_str()) {
                problems.push(format!("{}: {library}", source.path.display()));
            }
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn the_deterministic_modules_touch_nothing_that_differs_between_replicas() {
    let mut problems = Vec::new();
    for source in sources() {
        if !DETERMINISTIC.contains(&source.module.as_str()) {
            continue;
        }
        let words = words(&source.code);
        let of_std = imports(&source.code, "std::");
        let types = UNSTABLE_TYPES.iter().filter(|name| words.contains(**name));
        let crates = UNSTABLE_CRATES.iter().filter(|name| uses_crate(&source.code, name));
        let modules = UNSTABLE_STD.iter().filter(|name| of_std.iter().any(|used| used == *name));
        for name in types.chain(crates).chain(modules) {
            problems.push(format!("{}: {name}", source.path.display()));
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn files_say_what_they_are_for_and_are_not_too_long() {
    let mut problems = Vec::new();
    for root in ["src", "tests"] {
        for path in rust_files(&root_dir().join(root)) {
            let text = fs::read_to_string(&path).expect("source is UTF-8");
            if !text.starts_with("//! ") {
                problems.push(format!("{} does not open with //!", path.display()));
            }
            let lines = text.lines().count();
            if lines > MAX_LINES {
                problems.push(format!("{} has {lines} lines", path.display()));
            }
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

/// The kernel calls the root of every mount inode 1: who takes its number for one of ours without
/// `mount/root.rs` shows the wrong directory in mounts of subtrees.
#[test]
fn inode_numbers_of_the_kernel_are_translated() {
    let filesystem = root_dir().join("src/mount/filesystem.rs");
    let code = strip(&fs::read_to_string(filesystem).expect("it is there"));
    let numbers = code.match_indices("Ino(").filter(|(at, _)| !code[..*at].ends_with(is_of_word));
    assert_eq!(numbers.count(), 0, "use QuorumFs::ino");
}

/// What waits without a bound is memory that is gone some day.
#[test]
fn channels_are_bounded() {
    let src = root_dir().join("src");
    let mut problems = Vec::new();
    for source in sources() {
        let unbounded = [
            "unbounded_channel",
            "unbounded()",
            "unbounded::<",
            "mpsc::channel()",
            "sync::mpsc::channel::<",
        ];
        let found = unbounded.iter().map(|how| source.code.matches(how).count()).sum::<usize>();
        let path = source.path.strip_prefix(&src).expect("below it");
        let known = UNBOUNDED.iter().find(|(file, ..)| path == Path::new(file));
        let known = known.map_or(0, |(_, count, _)| *count);
        if found != known {
            problems.push(format!("{}: {found} unbounded channels, not {known}", path.display()));
        }
    }
    let gone = UNBOUNDED.iter().filter(|(file, ..)| !src.join(file).exists());
    problems.extend(gone.map(|(file, ..)| format!("{file} is gone")));
    assert!(
        problems.is_empty(),
        "give them a bound, or say in UNBOUNDED what it is: {problems:#?}"
    );
}

#[test]
fn mod_files_only_explain_and_re_export() {
    for source in sources() {
        if source.path.ends_with("mod.rs") {
            let words = words(&source.code);
            for word in ["impl", "trait"] {
                let path = source.path.display();
                assert!(!words.contains(word), "{path}: move its {word} to a file of its own");
            }
        }
        assert!(!source.text.contains("::*;"), "{}: glob import", source.path.display());
    }
}

#[test]
fn the_scanner_sees_what_the_compiler_sees() {
    let code = strip("use crate::{fs::View, types::{Ino, Time}}; // crate::cli\ncrate::node::x();");
    assert_eq!(imports(&code, "crate::"), ["fs", "types", "node"]);
    let code =
        strip("let a = \"crate::rpc \\\" tokio\"; let b = '\"'; let c: &'static str; /* sled */");
    assert!(imports(&code, "crate::").is_empty());
    assert!(words(&code).contains("static") && !words(&code).contains("tokio"));
    assert!(uses_crate("use raft::X;", "raft") && uses_crate("use sled;", "sled"));
    assert!(!uses_crate("use crate::raft::X; a.raft; fn raft()", "raft"));
    assert!(words(&strip("r#\"sled\"# x")).contains("x"));
    assert!(!words(&strip("r#\"sled\"# x")).contains("sled"));
}

fn root_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    let src = root_dir().join("src");
    rust_files(&src)
        .into_iter()
        .filter_map(|path| {
            let first = path.strip_prefix(&src).ok()?.components().next()?;
            let module = first.as_os_str().to_str()?.trim_end_matches(".rs").to_owned();
            let text = fs::read_to_string(&path).expect("source is UTF-8");
            let code = strip(&text);
            Some(Source { path, module, text, code })
        })
        .filter(|source| !["lib", "main"].contains(&source.module.as_str()))
        .collect()
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).expect("the crate's own directory") {
        let path = entry.expect("readdir").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The first name of each path that starts at `root`, also within braces.
fn imports(code: &str, root: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(root) {
        if code[..at].ends_with(is_of_word) {
            continue;
        }
        let rest = &code[at + root.len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(first_names(group)),
            None => found.push(first_name(rest)),
        }
    }
    found
}

/// The first names of a group's parts; `group` begins behind its opening brace.
fn first_names(group: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut depth = 0;
    let mut start = 0;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                names.push(first_name(group[start..at].trim_start()));
                start = at + 1;
            }
            _ => {}
        }
        if c == '}' && start == at + 1 {
            break;
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

fn first_name(path: &str) -> String {
    path.chars().take_while(|c| is_of_word(*c)).collect()
}

fn words(code: &str) -> BTreeSet<&str> {
    code.split(|c| !is_of_word(c)).collect()
}

/// Whether a path starts at this crate: not a module of that name, nor a field.
fn uses_crate(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let (before, after) = (&code[..at], &code[at + name.len()..]);
        let starts =
            !before.ends_with(is_of_word) && (!before.ends_with("::") || before.ends_with(" ::"));
        let imported = before.ends_with("use ") && after.starts_with(';');
        starts && (after.starts_with("::") || imported)
    })
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Blanks out comments, strings and character literals.
fn strip(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = skip_comment(rest).or_else(|| skip_literal(rest, &code));
        let length = skipped.unwrap_or(first.len_utf8());
        code.push(if skipped.is_some() { ' ' } else { first });
        rest = &rest[length..];
    }
    code
}

fn skip_comment(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        Some(rest.find('\n').unwrap_or(rest.len()))
    } else if rest.starts_with("/*") {
        Some(rest.find("*/").map_or(rest.len(), |end| end + 2))
    } else {
        None
    }
}

fn skip_literal(rest: &str, before: &str) -> Option<usize> {
    let in_word = before.ends_with(is_of_word);
    if !in_word && (rest.starts_with("r\"") || rest.starts_with("r#")) {
        let hashes = rest[1..].chars().take_while(|c| *c == '#').count();
        let body = rest[1 + hashes..].strip_prefix('"')?;
        let end = format!("\"{}", "#".repeat(hashes));
        return Some(2 + hashes + body.find(&end).map_or(body.len(), |at| at + end.len()));
    }
    if let Some(body) = rest.strip_prefix('"') {
        return Some(1 + quoted(body, '"').unwrap_or(body.len()));
    }
    // A lifetime has no closing quote right behind its first character.
    let body = rest.strip_prefix('\'')?;
    let first = body.chars().next()?;
    let is_character = first == '\\' || body[first.len_utf8()..].starts_with('\'');
    is_character.then(|| 1 + quoted(body, '\'').unwrap_or(body.len()))
}

/// Bytes up to and with the closing quote.
fn quoted(body: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in body.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return Some(at + c.len_utf8()),
            _ => {}
        }
    }
    None
}
