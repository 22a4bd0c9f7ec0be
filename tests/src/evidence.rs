//! Evidence of a failure, collected before anything is cleaned up: logs, the guest's console, stacks, blocked tasks.
//!
//! Goes to the folder that `KIAI_EVIDENCE` names, and nowhere if it names none. `cargo xtask test` keeps the folder of
//! a test that failed.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use crate::census;

/// How long a test may take, on an emulated machine that does other things too.
const LIMIT: Duration = Duration::from_secs(9 * 60);
/// The exit status of a test's process that ended because of [`LIMIT`].
const HUNG: i32 = 86;
/// Files that tell how something went: the shim's own log, the guest's console, a container's output.
const LOGS: [&str; 3] = ["shim.log", "console.log", "container.log"];
/// How many lines of the kernel's log are kept: the dump of blocked tasks is at its end.
const KERNEL_LINES: usize = 400;

/// Folders whose logs are evidence: those of the scenario that runs.
static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// From now on the logs below `folder` are evidence.
pub(crate) fn watch(folder: &Path) {
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).push(folder.to_owned());
}

/// Forgets all folders: the next scenario has others.
pub(crate) fn forget() {
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// Collects everything there is now.
pub(crate) fn collect() {
    let folders = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    folders.iter().for_each(|folder| logs(folder, folder));
    for (pid, line) in census::processes() {
        stacks(pid, &line);
    }
    // Best effort: on a machine where the key is not to be had, the rest still tells something.
    let _ = fs::write("/proc/sysrq-trigger", "w");
    let kernel = Command::new("dmesg").output().map(|output| output.stdout).unwrap_or_default();
    let kernel = String::from_utf8_lossy(&kernel);
    let lines: Vec<_> = kernel.lines().collect();
    write("kernel-log.txt", &lines[lines.len().saturating_sub(KERNEL_LINES)..].join("\n"));
}

/// Writes down where every thread of a process is, in the kernel and in the program.
pub(crate) fn stacks(pid: i32, line: &str) {
    let mut text = format!("{pid} {line}\n");
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let of = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let status = of("status");
        let state = status.lines().find(|line| line.starts_with("State:")).unwrap_or_default();
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "\n{} {} {state}\nsyscall {}{}",
            task.file_name().to_string_lossy(),
            of("comm").trim_end(),
            of("syscall"),
            of("stack")
        );
    }
    // From elfutils; where it is not installed, the kernel's half is what there is.
    if let Ok(output) = Command::new("eu-stack").args(["-p", &pid.to_string()]).output() {
        text += &String::from_utf8_lossy(&output.stdout);
    }
    write(&format!("stacks-{pid}.txt"), &text);
}

/// Runs `test` with a watch over it: when it takes too long, evidence is collected and the process ends.
pub(crate) fn watched<T>(test: impl FnOnce() -> T) -> T {
    let ended = (Mutex::new(false), Condvar::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let guard = ended.0.lock().unwrap_or_else(PoisonError::into_inner);
            let waited = ended.1.wait_timeout_while(guard, LIMIT, |ended| !*ended);
            let (ended, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if !*ended {
                collect();
                eprintln!("\nthread 'watch' panicked at its limit:\nhang: no end within {LIMIT:?}");
                std::process::exit(HUNG);
            }
        });
        let result = test();
        *ended.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        ended.1.notify_all();
        result
    })
}

/// Copies the logs below `folder`; the name says where each was.
fn logs(top: &Path, folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_log = entry.file_name().to_str().is_some_and(|name| LOGS.contains(&name));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            logs(top, &path);
        } else if is_log && let Ok(below) = path.strip_prefix(top) {
            let text = fs::read(&path).unwrap_or_default();
            write(&below.to_string_lossy().replace('/', "-"), &String::from_utf8_lossy(&text));
        }
    }
}

fn write(name: &str, text: &str) {
    let Some(folder) = env::var_os("KIAI_EVIDENCE") else { return };
    if let Err(error) = fs::write(Path::new(&folder).join(name), text) {
        eprintln!("evidence {name}: {error}");
    }
}
