//! Templates: machines that were saved when their agent was ready and nothing of any pod was in them, for pods to go on
//! from instead of booting.
//!
//! ```text
//!   templates/KEY/state, memory     complete: it was moved here at once
//!   templates/.new-*                being made, or left by somebody who was killed
//! ```
//! The key is a hash of all that the guest can tell from its boot: kernel, initramfs, parameters, sizes, and this program
//! itself. So what has changed is not found, and nothing has to be compared. A processor that answers otherwise is found
//! out when the machine is restored. Whoever uses a template maps its memory, so its files never change; one that is
//! removed stays for those who have it open.

use std::fs;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kiai_vmm::NamedFile;
use kiai_vmm::VmHandle;
use kiai_vmm::vsock::VsockPorts;
use sha2::Digest;
use sha2::Sha256;

use super::EndWatch;
use super::Machine;
use super::boot;
use super::boot::SandboxBootError;
use crate::agent::Ready;
use crate::plan::SandboxPlan;

const STATE: &str = "state";
const MEMORY: &str = "memory";
/// What begins the name of one that is not complete.
const NEW: &str = ".new-";

/// Why there is no template.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A step on the host failed.
    #[error("{step} {path}")]
    File {
        /// The step.
        step: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Memory of huge pages is not shared between machines.
    #[error("a template with memory of 2 MiB pages (huge-pages) cannot be made")]
    HugePages,
    /// The machine did not boot.
    #[error(transparent)]
    Boot(#[from] SandboxBootError),
    /// The machine could not be saved.
    #[error("save the microVM")]
    Save(#[source] kiai_vmm::SaveError),
}

/// Which template a sandbox can go on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateKey(String);

impl TemplateKey {
    /// Of the machine that `plan` boots.
    pub fn of(plan: &SandboxPlan) -> io::Result<Self> {
        let mut text = String::new();
        for path in [Path::new("/proc/self/exe"), &plan.kernel, &plan.initrd] {
            let file = fs::metadata(path)?;
            let changed = (file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec());
            text += &format!("{} {} {} {changed:?}\n", file.dev(), file.ino(), file.len());
        }
        let sizes =
            (plan.bounds.boot_mib, plan.bounds.most_mib, plan.bounds.boot_vcpus, plan.bounds.most_vcpus);
        text += &format!("{sizes:?} {:?}\n", plan.kernel_parameters);
        let hash = hex::encode(Sha256::digest(text));
        Ok(Self(hash[..32].to_owned()))
    }

    /// As the folder is called.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The files of a template, open.
pub(super) struct Template {
    pub(super) state: NamedFile,
    pub(super) memory: NamedFile,
}

/// The template for `plan` in the folder `templates`, if there is one.
pub(super) fn find(templates: &Path, plan: &SandboxPlan) -> Option<Template> {
    let folder = templates.join(TemplateKey::of(plan).ok()?.as_str());
    let open = |name: &str| -> io::Result<NamedFile> {
        let path = folder.join(name);
        Ok(NamedFile { file: File::open(&path)?, name: path.display().to_string() })
    };
    match (open(STATE), open(MEMORY)) {
        (Ok(state), Ok(memory)) => Some(Template { state, memory }),
        (Err(error), _) | (_, Err(error)) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(%error, "template {}", folder.display());
            }
            None
        }
    }
}

/// Makes the template for `plan` in the folder `templates`. One that is there already, or that somebody else has made
/// meanwhile, is left as it is.
pub async fn make(templates: &Path, mut plan: SandboxPlan) -> Result<TemplateKey, TemplateError> {
    if plan.huge_pages {
        return Err(TemplateError::HugePages);
    }
    let failed = |step, path: &Path| {
        let path = path.to_owned();
        move |source| TemplateError::File { step, path, source }
    };
    // What is in a template is in every pod: nobody else reads it.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::create_dir_all(templates)
        .and_then(|()| fs::set_permissions(templates, mode))
        .map_err(failed("make the folder", templates))?;
    let key = TemplateKey::of(&plan).map_err(failed("look at the kernel and initrd of", templates))?;
    let folder = templates.join(key.as_str());
    if folder.exists() {
        return Ok(key);
    }
    let new = tempfile::Builder::new().prefix(NEW).tempdir_in(templates);
    let new = new.map_err(failed("make a folder in", templates))?;
    // In the machine there is a device for it, and nobody has mounted it.
    let shared = new.path().join("shared");
    fs::create_dir(&shared).map_err(failed("make the folder", &shared))?;
    plan.templates = None;
    let vm = boot_to_ready(&plan, shared.clone()).await?;
    let create = |name: &str| {
        let path = new.path().join(name);
        File::create_new(&path).map_err(failed("create", &path))
    };
    let (mut state, memory) = (create(STATE)?, create(MEMORY)?);
    let saved = tokio::task::spawn_blocking(move || vm.0.save(&mut state, &memory)).await;
    let panicked = |_| failed("save the microVM to", new.path())(io::Error::other("the thread panicked"));
    saved.map_err(panicked)?.map_err(TemplateError::Save)?;
    fs::remove_dir(&shared).map_err(failed("remove the folder", &shared))?;
    match fs::rename(new.path(), &folder) {
        Ok(()) => {
            // There is nothing left to remove.
            let _moved = new.keep();
            Ok(key)
        }
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTEMPTY | libc::EEXIST)) => Ok(key),
        Err(source) => Err(failed("move the template to", &folder)(source)),
    }
}

/// A machine whose agent serves and has been asked for nothing.
async fn boot_to_ready(plan: &SandboxPlan, shared: PathBuf) -> Result<Machine, SandboxBootError> {
    let host = |step| move |source| SandboxBootError::Host { step, source };
    let ports = VsockPorts::new().map_err(host("vsock ports"))?;
    let ready = Ready::listen(&ports)?;
    let config = boot::machine(plan, shared, Arc::clone(&ports))?;
    let vm = tokio::task::spawn_blocking(|| VmHandle::build(config).map(Machine)).await;
    let vm = vm.map_err(|_| host("build the microVM")(io::Error::other("the thread panicked")))?;
    let vm = vm.map_err(SandboxBootError::Build)?;
    let end = EndWatch::of(&vm.0).map_err(host("wait for the microVM"))?;
    if vm.0.resume().is_err() {
        return Err(boot::died(plan, end.wait().await));
    }
    let patience = Duration::from_secs(plan.boot_timeout_seconds.into());
    boot::wait_ready(plan, &vm, &end, ready, patience).await?;
    Ok(vm)
}

/// A template that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateFacts {
    /// Its key.
    pub key: String,
    /// Bytes that its files have on the host.
    pub bytes: u64,
    /// It is not complete: it is being made, or whoever made it was killed.
    pub incomplete: bool,
}

/// What is in the folder `templates`, which need not be there.
pub fn list(templates: &Path) -> io::Result<Vec<TemplateFacts>> {
    let entries = match fs::read_dir(templates) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let key = entry.file_name().to_string_lossy().into_owned();
        let size = |name| fs::metadata(entry.path().join(name)).map_or(0, |file| file.blocks() * 512);
        found.push(TemplateFacts {
            incomplete: key.starts_with(NEW),
            bytes: size(STATE) + size(MEMORY),
            key,
        });
    }
    found.sort_by(|one, other| one.key.cmp(&other.key));
    Ok(found)
}

/// Removes one, by its key. Pods that go on from it keep what they have.
pub fn remove(templates: &Path, key: &str) -> io::Result<()> {
    let is_name = !key.is_empty() && key != "." && key != ".." && !key.contains('/');
    if !is_name {
        return Err(io::Error::new(io::ErrorKind::NotFound, "no such template"));
    }
    fs::remove_dir_all(templates.join(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_folder_is_listed_and_removed_by_its_name_alone() {
        let folder = tempfile::tempdir().unwrap();
        let templates = folder.path().join("templates");
        assert_eq!(list(&templates).unwrap(), []);
        for key in ["b", "a", ".new-x"] {
            fs::create_dir_all(templates.join(key)).unwrap();
        }
        fs::write(templates.join("a/state"), [1; 4096]).unwrap();
        let listed = list(&templates).unwrap();
        let keys: Vec<_> = listed.iter().map(|facts| (facts.key.as_str(), facts.incomplete)).collect();
        assert_eq!(keys, [(".new-x", true), ("a", false), ("b", false)]);
        assert!(listed[1].bytes >= 4096 && listed[2].bytes == 0);
        for wrong in ["", ".", "..", "../templates", "c"] {
            assert_eq!(remove(&templates, wrong).unwrap_err().kind(), io::ErrorKind::NotFound, "{wrong}");
        }
        remove(&templates, "a").unwrap();
        assert_eq!(list(&templates).unwrap().len(), 2);
    }
}
