//! The volumes and tmpfs of a new container: those of the user, and a volume for each `VOLUME` of the image.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context as _;
use anyhow::anyhow;
use oci_spec::image::Config;

use crate::cli::container_options::ContainerOptions;
use crate::copy;
use crate::host::inside::Tree;
use crate::host::inside::TreeRoot;
use crate::host::inside::inside;
use crate::spec::mount_option::MountOption;
use crate::spec::volume::BindMount;
use crate::spec::volume::TmpfsMount;
use crate::spec::volume::VolumeOption;
use crate::spec::volume::VolumeSource;
use crate::store::Paths;
use crate::store::file;
use crate::store::timestamp::Timestamp;
use crate::store::volumes::VolumeRecord;
use crate::store::volumes::Volumes;

/// The mounts, planned but not made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Mounts {
    /// Every volume; an anonymous one has a name by now.
    pub(super) volumes: Vec<VolumeOption>,
    pub(super) tmpfs: Vec<TmpfsMount>,
    /// Names of anonymous volumes.
    pub(super) anonymous: Vec<String>,
}

impl Mounts {
    /// Plans the mounts; `name` gives an anonymous volume its name.
    ///
    /// # Errors
    /// The image's `VOLUME` is not a path, or there is no name.
    pub(super) fn plan(
        image: &Config,
        options: &ContainerOptions,
        mut name: impl FnMut() -> anyhow::Result<String>,
    ) -> anyhow::Result<Self> {
        let mut mounts =
            Self { volumes: options.volume.clone(), tmpfs: options.tmpfs.clone(), anonymous: Vec::new() };
        for mount in &options.mount {
            match mount {
                MountOption::Volume(volume) => mounts.volumes.push(volume.clone()),
                MountOption::Tmpfs(tmpfs) => mounts.tmpfs.push(tmpfs.clone()),
            }
        }
        for path in image.volumes().iter().flatten() {
            let volume: VolumeOption =
                path.parse().map_err(|error| anyhow!("the image's volume: {error}"))?;
            let asked = mounts.volumes.iter().map(|volume| &volume.destination);
            let mut asked = asked.chain(mounts.tmpfs.iter().map(|tmpfs| &tmpfs.destination));
            if volume.source == VolumeSource::Anonymous && !asked.any(|place| *place == volume.destination) {
                mounts.volumes.push(volume);
            }
        }
        for volume in &mut mounts.volumes {
            if volume.source == VolumeSource::Anonymous {
                let name = name()?;
                volume.source = VolumeSource::Named(name.clone());
                mounts.anonymous.push(name);
            }
        }
        Ok(mounts)
    }

    /// Makes what does not exist, and finds the sources. With `rehearsal` nothing is made.
    ///
    /// # Errors
    /// A path is missing, or a volume cannot be made or filled.
    pub(super) fn provide(
        &self,
        paths: &Paths,
        layers: &[PathBuf],
        rehearsal: bool,
    ) -> anyhow::Result<Vec<BindMount>> {
        let volumes = Volumes::new(paths);
        let provide = |volume: &VolumeOption| -> anyhow::Result<BindMount> {
            let source = match &volume.source {
                VolumeSource::Named(name) if rehearsal => volumes.path(name),
                VolumeSource::Named(name) => {
                    self.provide_named(&volumes, name, volume, layers)
                        .with_context(|| format!("volume {name}"))?;
                    volumes.path(name)
                }
                VolumeSource::Path(path) => host_path(path, volume.must_exist, rehearsal)?,
                VolumeSource::Anonymous => return Err(anyhow!("an anonymous volume has no name")),
            };
            Ok(BindMount { source, destination: volume.destination.clone(), read_only: volume.read_only })
        };
        self.volumes.iter().map(provide).collect()
    }

    fn provide_named(
        &self,
        volumes: &Volumes,
        name: &str,
        volume: &VolumeOption,
        layers: &[PathBuf],
    ) -> anyhow::Result<()> {
        let _lock = volumes.lock()?;
        volumes.create(&VolumeRecord {
            name: name.to_owned(),
            created: Some(Timestamp::now()),
            labels: BTreeMap::new(),
            anonymous: self.anonymous.iter().any(|anonymous| anonymous == name),
        })?;
        match layers.first() {
            Some(layer) if volume.copy && volumes.is_empty(name)? => {
                fill(&volumes.path(name), layer, &volume.destination)
            }
            _ => Ok(()),
        }
    }
}

/// Gives an empty volume the content that the image has at its destination. The content appears at once: a volume that
/// a killed command was filling is empty.
fn fill(volume: &Path, layer: &Path, destination: &Path) -> anyhow::Result<()> {
    let tree = Tree { root: TreeRoot::Directory(layer.to_owned()), volumes: Vec::new() };
    let found = inside(&tree, || match fs::metadata(destination) {
        Ok(metadata) if metadata.is_dir() => Ok(Some(metadata)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    })?;
    let Some(metadata) = found? else { return Ok(()) };
    let name = volume.file_name().unwrap_or_default().display();
    // No volume has such a name: they begin with a letter or digit.
    let making = volume.with_file_name(format!(".making-{name}"));
    file::remove_tree(&making)?;
    file::create_directories(&making)?;
    let (reader, writer) = io::pipe()?;
    let (packed, unpacked) = std::thread::scope(|scope| {
        let packing = scope.spawn(|| inside(&tree, || copy::pack(destination, Path::new("."), writer)));
        let unpacked = copy::unpack(reader, &making, true);
        (packing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), unpacked)
    });
    packed?.context("cannot read the image's content")?;
    unpacked.context("cannot write the image's content")?;
    std::os::unix::fs::chown(&making, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(&making, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
    // The volume is an empty directory, which is replaced.
    fs::rename(&making, volume).with_context(|| format!("cannot fill {}", volume.display()))
}

/// The canonical path of a directory or file of the host. As with docker, `-v` makes a directory that does not exist.
fn host_path(path: &Path, must_exist: bool, rehearsal: bool) -> anyhow::Result<PathBuf> {
    let named = || format!("volume {}", path.display());
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => {
            if rehearsal {
                return std::path::absolute(path).with_context(named);
            }
            fs::create_dir_all(path).with_context(named)?;
        }
        Err(error) => return Err(error).with_context(named),
        Ok(_) => {}
    }
    fs::canonicalize(path).with_context(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_filled_once_and_owned_as_in_the_image() {
        let folder = tempfile::tempdir().unwrap();
        let paths =
            Paths { root: folder.path().into(), state: folder.path().into(), namespace: "default".into() };
        let layer = folder.path().join("layer");
        fs::create_dir_all(layer.join("real/data")).unwrap();
        fs::write(layer.join("real/data/file"), "image").unwrap();
        std::os::unix::fs::chown(layer.join("real/data/file"), Some(12), Some(34)).unwrap();
        fs::set_permissions(layer.join("real/data"), fs::Permissions::from_mode(0o751)).unwrap();
        std::os::unix::fs::symlink("/real", layer.join("link")).unwrap();
        let mounts = |text: &str| Mounts { volumes: vec![text.parse().unwrap()], ..Mounts::default() };
        let provide = |text: &str| mounts(text).provide(&paths, std::slice::from_ref(&layer), false).unwrap();
        let source = provide("data:/link/data")[0].source.clone();
        assert_eq!(source, folder.path().join("volumes/data"));
        let file = fs::metadata(source.join("file")).unwrap();
        assert_eq!((file.uid(), file.gid()), (12, 34));
        assert_eq!(fs::metadata(&source).unwrap().mode() & 0o7777, 0o751);
        // What is in it stays, also if the image has another content.
        fs::write(source.join("file"), "mine").unwrap();
        provide("data:/link/data");
        assert_eq!(fs::read_to_string(source.join("file")).unwrap(), "mine");
        for text in ["empty:/link/data:nocopy", "none:/none"] {
            let source = provide(text)[0].source.clone();
            assert_eq!(fs::read_dir(source).unwrap().count(), 0, "{text}");
        }
        let missing = "type=bind,source=/no/such,target=/d".parse().unwrap();
        let MountOption::Volume(missing) = missing else { panic!() };
        let mounts = Mounts { volumes: vec![missing], ..Mounts::default() };
        assert!(mounts.provide(&paths, &[], false).unwrap_err().to_string().contains("/no/such"));
        assert_eq!(Volumes::new(&paths).list().unwrap().len(), 3);
    }
}
