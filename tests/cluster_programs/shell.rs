//! Scripts as people write them: they must succeed.

use std::path::Path;
use std::process::Command;
use std::thread;

use super::support::text;

/// Runs a script in a directory, with its arguments as `$1` and on; answers what it printed to stdout. A
/// command that fails ends the script, and with it the test.
pub fn sh(dir: &Path, script: &str, arguments: &[&Path]) -> String {
    let mut shell = Command::new("sh");
    shell.args(["-euc", script, "sh"]).args(arguments);
    // What cargo tells the tests is not meant for the programs that they run.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO") && name != "CARGO_HOME" {
            shell.env_remove(name);
        }
    }
    let output = shell.env("LC_ALL", "C").current_dir(dir).output().expect("there is a shell");
    assert!(
        output.status.success(),
        "{} in {}: {script}\n{arguments:?}\nit said: {}{}",
        output.status,
        dir.display(),
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// Runs a script in several directories at once. `$1` is the number of the directory, from 1.
pub fn at_once(dirs: &[&Path], script: &str) {
    thread::scope(|scope| {
        for (number, dir) in (1..).zip(dirs) {
            let number: u32 = number;
            scope.spawn(move || sh(dir, script, &[Path::new(&number.to_string())]));
        }
    });
}

/// Whether two listings are the same; says which lines differ where they are not.
pub fn assert_same(found: &str, wanted: &str, when: &str) {
    let only = |of: &str, other: &str| {
        let lines = of.lines().filter(|line| !other.lines().any(|known| known == *line));
        lines.take(20).map(str::to_owned).collect::<Vec<_>>()
    };
    let (more, less) = (only(found, wanted), only(wanted, found));
    assert!(found == wanted, "{when}: found only {more:#?}, wanted only {less:#?}");
}
