//! Python: packages in a virtual environment inside the mount, and what they do with files.

use std::process::Command;

use super::shell::{at_once, sh};
use super::support::python::Python;
use super::support::{Cluster, PATIENCE, wait_until};

/// Checks each installed file against the hash that came with it; prints how many.
const CHECK: &str = "
import base64, hashlib
from importlib.metadata import distributions
checked = 0
for distribution in distributions():
    for file in distribution.files:
        if file.hash:
            digest = hashlib.new(file.hash.mode, file.read_binary()).digest()
            assert base64.urlsafe_b64encode(digest).rstrip(b'=').decode() == file.hash.value, file
            checked += 1
print(checked)
";

/// Makes a virtual environment on the first mount and installs packages into it, from the registry or the
/// directory that pip is configured for.
fn install(cluster: &Cluster, packages: &str) {
    let has_venv = Command::new("python3").args(["-c", "import ensurepip, venv"]).output();
    let has_venv = has_venv.is_ok_and(|output| output.status.success());
    assert!(has_venv, "venv is missing: run 'apt-get install python3-venv'");
    let script = format!(
        "python3 -m venv venv; venv/bin/pip install -q --no-input {packages} || {{ \
         echo 'pip must be able to install {packages}: see pip config' >&2; exit 1; }}"
    );
    sh(&cluster.mount(1), &script, &[]);
}

/// A Python of that environment on one of the mounts, which does what it is told there.
fn start(cluster: &Cluster, node: u64) -> Python {
    let mount = cluster.mount(node);
    Python::start(mount.join("venv/bin/python"), &mount)
}

#[test]
#[ignore = "long: it needs packages from pip"]
fn pip_installs_into_an_environment() {
    let cluster = Cluster::up(3);
    install(&cluster, "numpy safetensors filelock");
    let checked = sh(&cluster.mount(1), "venv/bin/python -c \"$1\"", &[CHECK.as_ref()]);
    assert!(checked.trim().parse::<u32>().is_ok_and(|files| files > 500), "{checked}");
    for node in [2, 3] {
        let mount = cluster.mount(node);
        assert_eq!(sh(&mount, "venv/bin/python -c \"$1\"", &[CHECK.as_ref()]), checked);
        sh(&mount, "venv/bin/python -m pip check", &[]);
        let multiply = "venv/bin/python -c 'import filelock, safetensors, numpy
print((numpy.arange(6).reshape(2, 3) @ numpy.ones((3, 1), int)).ravel())'";
        assert_eq!(sh(&mount, multiply, &[]), "[ 3 12]\n");
    }
    sh(&cluster.mount(2), "venv/bin/python -m pip uninstall -q -y numpy filelock", &[]);
    let left = "venv/bin/python -m pip list --format=freeze | cut -d= -f1 | grep -v pip";
    for node in 1..=3 {
        let left = sh(&cluster.mount(node), left, &[]);
        let left: Vec<_> = left.lines().filter(|package| *package != "setuptools").collect();
        assert_eq!(left, ["safetensors"]);
        let gone = "! ls -d venv/lib/python3*/site-packages/numpy* 2>/dev/null";
        sh(&cluster.mount(node), gone, &[]);
    }
    cluster.settle();
}

#[test]
#[ignore = "long: it needs packages from pip"]
fn numpy_memmaps_are_seen_elsewhere() {
    const DIGEST: &str = "print(hashlib.sha256(array.tobytes()).hexdigest())";
    let cluster = Cluster::up(3);
    install(&cluster, "numpy");
    let [mut one, mut two, mut three] = [1, 2, 3].map(|node| start(&cluster, node));
    for python in [&mut one, &mut two, &mut three] {
        python.does("import hashlib, numpy; shape = (1024, 4096)");
    }
    one.does("array = numpy.memmap('array', 'float32', 'w+', shape=shape)");
    one.does("array[:] = numpy.random.default_rng(1).random(shape, 'float32'); array.flush()");
    // The first mapping stays; what it flushed is what others map.
    two.does("array = numpy.memmap('array', 'float32', 'r+', shape=shape)");
    three.does("array = numpy.random.default_rng(1).random(shape, 'float32')");
    let wanted = three.says(DIGEST);
    assert_eq!(one.says(DIGEST), wanted);
    assert_eq!(two.says(DIGEST), wanted);
    two.does("array[7] = 0.5; array[1000:, ::7] += 1; array.flush()");
    let wanted = two.says(DIGEST);
    three.does("array = numpy.memmap('array', 'float32', 'r', shape=shape)");
    assert_eq!(three.says(DIGEST), wanted);
    // A mapping that was there before follows soon.
    wait_until(PATIENCE, "the older mapping", || (one.says(DIGEST) == wanted).then_some(()));

    three.does("numpy.save('saved.npy', array)");
    one.does("array = numpy.load('saved.npy', mmap_mode='c')");
    assert_eq!(one.says(DIGEST), wanted);
    // Copy-on-write: nobody else's business.
    one.does("array[0] = 7");
    two.does("array = numpy.load('saved.npy', mmap_mode='r')");
    assert_eq!(two.says(DIGEST), wanted);
    assert_ne!(one.says(DIGEST), wanted);
    cluster.settle();
}

#[test]
#[ignore = "long: it needs packages from pip"]
fn safetensors_are_mapped_elsewhere() {
    const DIGEST: &str = "print(hashlib.sha256(b''.join(model.get_tensor(name).tobytes() \
        for name in sorted(model.keys()))).hexdigest())";
    const OPEN: &str = "model = safe_open('model.safetensors', 'np')";
    let make = |seed: u32| {
        format!(
            "random = numpy.random.default_rng({seed}); weights = \
             {{f'layer.{{i}}': random.random((256, 1024 + i)) for i in range(12)}}"
        )
    };
    let cluster = Cluster::up(3);
    install(&cluster, "numpy safetensors");
    let [mut one, mut two, mut three] = [1, 2, 3].map(|node| start(&cluster, node));
    let import = "import hashlib, numpy, os; from safetensors import safe_open; \
        from safetensors.numpy import load_file, save_file";
    for python in [&mut one, &mut two, &mut three] {
        python.does(import);
    }
    let digest_of_weights = "print(hashlib.sha256(b''.join(weights[name].tobytes() \
        for name in sorted(weights))).hexdigest())";
    one.does(&make(1));
    one.does("save_file(weights, 'model.safetensors', {'step': '1'})");
    let first = one.says(digest_of_weights);
    for python in [&mut one, &mut two, &mut three] {
        python.does(OPEN);
        assert_eq!(python.says("print(model.metadata()['step'])"), "1");
        assert_eq!(python.says(DIGEST), first);
    }
    let row = "print(model.get_slice('layer.7')[100, :5].tobytes() == \
        load_file('model.safetensors')['layer.7'][100, :5].tobytes())";
    assert_eq!(two.says(row), "True");
    // A new version replaces it; whoever has the old one open goes on with that.
    one.does(&make(2));
    one.does("save_file(weights, 'model.new', {'step': '2'})");
    one.does("os.replace('model.new', 'model.safetensors')");
    let second = one.says(digest_of_weights);
    assert_ne!(first, second);
    for python in [&mut two, &mut three] {
        assert_eq!(python.says(DIGEST), first);
        python.does(OPEN);
        assert_eq!(python.says(DIGEST), second);
    }
    cluster.settle();
}

#[test]
#[ignore = "long: it needs packages from pip"]
fn filelock_excludes_other_mounts() {
    let cluster = Cluster::up(3);
    install(&cluster, "filelock");
    let [one, two, three] = [1, 2, 3].map(|node| cluster.mount(node));
    // A lock of the kernel's, and one that is a file which only one can make.
    for (class, turns) in [("FileLock", 200), ("SoftFileLock", 40)] {
        let count = format!(
            "from filelock import {class}
for _ in range({turns}):
    with {class}('{class}.lock', timeout=60):
        with open('{class}') as file: count = int(file.read())
        with open('{class}', 'w') as file: file.write(str(count + 1))"
        );
        sh(&one, &format!("echo 0 > {class}; cat > {class}.py <<'END'\n{count}\nEND"), &[]);
        at_once(&[&one, &two, &three], &format!("venv/bin/python {class}.py"));
        assert_eq!(sh(&two, &format!("cat {class}"), &[]), (3 * turns).to_string());
    }
    let [mut one, mut two] = [1, 2].map(|node| start(&cluster, node));
    for python in [&mut one, &mut two] {
        python.does("import contextlib, filelock; lock = filelock.FileLock('lock')");
    }
    one.does("lock.acquire()");
    assert!(!gets_lock(&mut two));
    one.does("lock.release()");
    assert!(gets_lock(&mut two));
    two.does("lock.release()");
    // A lock goes with its process.
    one.does("lock.acquire()");
    assert!(!gets_lock(&mut two));
    one.kill();
    wait_until(PATIENCE, "the lock of a killed process", || gets_lock(&mut two).then_some(()));
    cluster.settle();
}

fn gets_lock(python: &mut Python) -> bool {
    let attempt = "with contextlib.suppress(filelock.Timeout): lock.acquire(timeout=0.5)";
    python.tell(attempt);
    python.says("print(lock.is_locked)") == "True"
}
