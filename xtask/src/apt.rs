//! Debian packages: which are installed, installing what is missing, fetching one without installing it, from this
//! machine's own sources, from Debian's backports or from its unstable suite.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::{cache, step};

const STATUS: &str = "/var/lib/dpkg/status";

/// The release of Debian that this is written for.
pub(crate) const SUITE: &str = "bookworm";
const MIRROR: &str = "http://deb.debian.org/debian";

/// Whether commands can be run as root: by this process itself or through sudo.
pub(crate) fn can_be_root() -> bool {
    let sudo = || std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(has_sudo));
    rustix::process::geteuid().is_root() || sudo()
}

fn has_sudo(folder: PathBuf) -> bool {
    folder.join("sudo").is_file()
}

/// `program`, run as root: as it is if this process is root, else through sudo.
pub(crate) fn as_root(program: &str) -> Command {
    if rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    command
}

/// Which of `wanted` are not installed. Reads dpkg's own record: no process is started.
pub(crate) fn missing(wanted: &[String]) -> Result<Vec<String>> {
    let status = fs::read_to_string(STATUS)
        .with_context(|| format!("{STATUS}: this needs Debian or a system made from it"))?;
    let installed = installed_in(&status);
    Ok(wanted.iter().filter(|name| !installed.contains(name.as_str())).cloned().collect())
}

/// The names of the packages that dpkg's `status` file records as installed.
fn installed_in(status: &str) -> HashSet<&str> {
    status
        .split("\n\n")
        .filter(|paragraph| paragraph.contains("\nStatus: ") && paragraph.contains(" ok installed\n"))
        .filter_map(|paragraph| paragraph.lines().find_map(|line| line.strip_prefix("Package: ")))
        .collect()
}

/// Installs `packages`, after bringing apt's lists up to date.
pub(crate) fn install(packages: &[String]) -> Result<()> {
    if !can_be_root() {
        bail!("installing Debian packages needs root: run this as root once, or install sudo");
    }
    Source::machine().update()?;
    let mut command = as_root("env");
    command.args([
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "install",
        "--yes",
        "--no-install-recommends",
    ]);
    step::run(&format!("installing {} Debian packages", packages.len()), command.args(packages))
}

/// Where packages are fetched from.
pub(crate) struct Source {
    /// For apt-get and apt-cache.
    options: Vec<String>,
}

impl Source {
    /// What this machine is set up with.
    pub(crate) fn machine() -> Self {
        let mut source = Self { options: vec!["--option=APT::Sandbox::User=root".into()] };
        // An index of the lists, which apt brings up to date by itself: asking for a version is a matter of a tenth of
        // a second with it. Images of containers are set up without one.
        source.index(&cache::root().join("apt"));
        source
    }

    /// Newer packages built for this release. The machine's own sources and lists stay as they are.
    pub(crate) fn backports() -> Result<Self> {
        Self::suite("apt-backports", &format!("{SUITE}-backports"))
    }

    /// The newest packages, built for no release: only some of their programs run on this one.
    pub(crate) fn unstable() -> Result<Self> {
        Self::suite("apt-unstable", "sid")
    }

    fn suite(folder: &str, suite: &str) -> Result<Self> {
        let folder = cache::root().join(folder);
        for directory in ["lists/partial", "archives/partial"] {
            let directory = folder.join(directory);
            fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        }
        let list = folder.join("sources.list");
        fs::write(&list, format!("deb {MIRROR} {suite} main\n"))?;
        let mut source = Self::machine();
        source.options.extend([
            format!("--option=Dir::Etc::SourceList={}", list.display()),
            "--option=Dir::Etc::SourceParts=-".into(),
            format!("--option=Dir::State::Lists={}", folder.join("lists").display()),
            format!("--option=Dir::Cache={}", folder.display()),
        ]);
        source.index(&folder);
        Ok(source)
    }

    fn index(&mut self, folder: &Path) {
        // Without the folder apt does without the index.
        let _ = fs::create_dir_all(folder);
        for index in ["pkgcache", "srcpkgcache"] {
            self.options.push(format!("--option=Dir::Cache::{index}={}", folder.join(index).display()));
        }
    }

    /// The version of `package` that there is to be had, by the lists of this machine; they are brought up to date
    /// only if they do not name the package.
    pub(crate) fn version(&self, package: &str) -> Result<String> {
        let look = || -> Result<Option<String>> {
            Ok(candidate(&step::output(self.command("apt-cache").args(["policy", package]))?))
        };
        if let Some(version) = look()? {
            return Ok(version);
        }
        self.update()?;
        look()?.with_context(|| format!("Debian's package lists on this machine have no package {package}"))
    }

    /// Makes something of the newest version of `package`. Lists that are too old name a version that is gone; then
    /// they have been brought up to date by the attempt to fetch it, and `make` gets the version that is there now.
    pub(crate) fn of_newest<T>(&self, package: &str, make: impl Fn(&str) -> Result<T>) -> Result<T> {
        let version = self.version(package)?;
        let made = make(&version);
        if made.is_ok() {
            return made;
        }
        let newer = self.version(package)?;
        if newer == version { made } else { make(&newer) }
    }

    /// Fetches `package` and unpacks it into `folder`; nothing is installed. Returns the package's version.
    pub(crate) fn fetch(&self, package: &str, folder: &Path) -> Result<String> {
        let _ = self.output_after_update(|| {
            let mut command = self.command("apt-get");
            command.args(["download", package]).current_dir(folder);
            command
        })?;
        let archive = downloaded(folder)?;
        let field = |name| step::output(Command::new("dpkg-deb").arg("--field").arg(&archive).arg(name));
        let version = field("Version")?.trim().to_owned();
        step::run(
            &format!("unpacking {package} {version}"),
            Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(folder),
        )?;
        fs::remove_file(&archive)?;
        Ok(version)
    }

    /// The first package that `package` depends on and whose name starts with `prefix`: what a metapackage stands for.
    pub(crate) fn dependency(&self, package: &str, prefix: &str) -> Result<String> {
        let listing = self.output_after_update(|| {
            let mut command = self.command("apt-cache");
            command.args(["depends", "--important", package]);
            command
        })?;
        listing
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| name.starts_with(prefix))
            .map(str::to_owned)
            .with_context(|| format!("Debian's {package} depends on no {prefix}…"))
    }

    /// The output of a command that reads the package lists; they are brought up to date if it fails the first time.
    fn output_after_update(&self, command: impl Fn() -> Command) -> Result<String> {
        if let Ok(output) = step::output(&mut command()) {
            return Ok(output);
        }
        self.update()?;
        step::output(&mut command())
    }

    fn update(&self) -> Result<()> {
        step::run("updating apt's package lists", as_root("apt-get").args(&self.options).arg("update"))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options);
        command
    }
}

/// The version that would be installed, in what `apt-cache policy` says of a package.
fn candidate(policy: &str) -> Option<String> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

fn downloaded(folder: &Path) -> Result<PathBuf> {
    let is_package = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "deb");
    let packages: Vec<_> =
        fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path())).filter(is_package).collect();
    ensure!(packages.len() == 1, "{}: {} packages where one was expected", folder.display(), packages.len());
    Ok(packages.into_iter().next().expect("the length was checked"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_candidate_is_the_version_to_be_had() {
        let policy =
            "linux-source-6.12:\n  Installed: (none)\n  Candidate: 6.12.117-1~deb12u1\n  Version table:\n";
        assert_eq!(candidate(policy).as_deref(), Some("6.12.117-1~deb12u1"));
        assert_eq!(candidate("x:\n  Installed: 1\n  Candidate: (none)\n"), None);
        assert_eq!(candidate(""), None);
    }

    #[test]
    fn only_packages_that_are_installed_count() {
        let status = "Package: kept\nStatus: install ok installed\nVersion: 1\n\n\
                      Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\
                      Package: last\nStatus: hold ok installed\nVersion: 2\n";
        assert_eq!(installed_in(status), HashSet::from(["kept", "last"]));
    }
}
