//! containerd 2 for tests: Debian's stable release has 1.6. Its unstable suite's package needs an older libc than the
//! release's, so its programs run here.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::{apt, cache};

const RECIPE: u32 = 1;
const PACKAGE: &str = "containerd";

/// Where its programs are in the artifact.
const PROGRAMS: &str = "usr/bin";

/// Tells the tests where its programs are.
pub(crate) const VARIABLE: &str = "KIAI_TEST_CONTAINERD";

/// The folder with `containerd` and `ctr`; an error if the package cannot be had.
pub(crate) fn newest() -> Result<PathBuf> {
    let source = apt::Source::unstable()?;
    let folder = source.of_newest(PACKAGE, |version| {
        let inputs = cache::Inputs::new(RECIPE).text("version", version);
        cache::artifact("containerd", &inputs, |folder: &Path| {
            source.fetch(&format!("{PACKAGE}={version}"), folder).map(drop)
        })
    })?;
    Ok(folder.join(PROGRAMS))
}
