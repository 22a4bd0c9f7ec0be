//! `kiai cp`: copies files between a container and the host. Between the two is always an archive, made on one side and
//! unpacked on the other; `-` is one from standard input or to standard output.

use std::fs;
use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context as _;
use anyhow::bail;

use crate::cli::Context;
use crate::cli::command_error::CommandError;
use crate::cli::tree::Files;
use crate::copy;
use crate::copy::Found;
use crate::copy::Kind;
use crate::copy::Source;
use crate::copy::Unpacked;
use crate::host::MountError;
use crate::host::inside::Tree;
use crate::host::inside::inside;

/// Copy files between a container, running or not, and the host
#[derive(Debug, clap::Args)]
pub(super) struct Cp {
    /// Keep the owners of the source
    #[arg(short, long)]
    archive: bool,
    /// Follow a symbolic link that the source names
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Say nothing, which kiai does anyway
    #[arg(short, long)]
    quiet: bool,
    /// CONTAINER:PATH, a path of the host, or - for an archive on standard input
    source: String,
    /// CONTAINER:PATH, a path of the host, or - for an archive to standard output
    destination: String,
}

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side<'a> {
    Container(&'a str, &'a str),
    Host(&'a str),
    Stream,
}

impl<'a> Side<'a> {
    /// A text with a `:` is a container's, unless it begins like a path of the host.
    fn parse(text: &'a str) -> Self {
        if text == "-" {
            return Self::Stream;
        }
        match text.split_once(':') {
            Some((name, path)) if !text.starts_with(['/', '.']) && !name.contains('/') => {
                Self::Container(name, path)
            }
            _ => Self::Host(text),
        }
    }
}

impl Cp {
    pub(super) async fn perform(self, context: &Context) -> Result<u8, CommandError> {
        let (source, destination) = (Side::parse(&self.source), Side::parse(&self.destination));
        match (source, destination) {
            (Side::Container(name, path), to @ (Side::Host(_) | Side::Stream)) => {
                let files = Files::of(context, name).await?;
                files.check(path, false)?;
                self.take_out(&files.tree, path, &to)
                    .with_context(|| format!("cannot copy {}", self.source))?;
            }
            (from @ (Side::Host(_) | Side::Stream), Side::Container(name, path)) => {
                let files = Files::of(context, name).await?;
                files.check(path, true)?;
                self.bring_in(&from, &files.tree, path)
                    .with_context(|| format!("cannot copy to {}", self.destination))?;
            }
            (Side::Container(..), Side::Container(..)) => {
                return Err(CommandError::own(anyhow::anyhow!(
                    "copying from one container to another: copy to the host first, or kiai cp {} - | kiai cp - {}",
                    self.source,
                    self.destination
                )));
            }
            _ => {
                return Err(CommandError::own(anyhow::anyhow!(
                    "neither {:?} nor {:?} is in a container; write CONTAINER:PATH",
                    self.source,
                    self.destination
                )));
            }
        }
        Ok(0)
    }

    fn take_out(&self, tree: &Tree, path: &str, to: &Side<'_>) -> anyhow::Result<()> {
        let rooted = rooted(path);
        let (source, real) = inside(tree, || describe(&rooted, self.follow_link))??;
        let Side::Host(text) = to else {
            let name = archive_name(&source);
            return Ok(inside(tree, || copy::pack(&real, &name, io::stdout().lock()))??);
        };
        let target = copy::target(text, found(Path::new(text)), &source)?;
        let packed = |out: io::PipeWriter| inside(tree, || copy::pack(&real, &target.name, out));
        through_pipe(packed, |from| Ok(copy::unpack(from, &target.into, self.archive)))
    }

    fn bring_in(&self, from: &Side<'_>, tree: &Tree, path: &str) -> anyhow::Result<()> {
        let rooted = rooted(path);
        let there = inside(tree, || found(Path::new(&rooted)))?;
        let Side::Host(text) = from else {
            if there != Found::There(Kind::Directory) {
                bail!("{path}: no such directory, and an archive is unpacked into a directory");
            }
            let stdin = io::stdin();
            let into = Path::new(&rooted);
            return report(inside(tree, || copy::unpack(stdin.lock(), into, self.archive))??);
        };
        let (source, real) = describe(text, self.follow_link)?;
        let target = copy::target(&rooted, there, &source)?;
        through_pipe(
            |out| Ok(copy::pack(&real, &target.name, out)),
            |pipe| inside(tree, || copy::unpack(pipe, &target.into, self.archive)),
        )
    }
}

/// Makes the archive on another thread and unpacks it on this one.
fn through_pipe(
    pack: impl FnOnce(io::PipeWriter) -> Result<io::Result<()>, MountError> + Send,
    unpack: impl FnOnce(io::PipeReader) -> Result<io::Result<Unpacked>, MountError>,
) -> anyhow::Result<()> {
    let (reader, writer) = io::pipe()?;
    let (packed, unpacked) = std::thread::scope(|scope| {
        let packing = scope.spawn(|| pack(writer));
        let unpacked = unpack(reader);
        (packing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), unpacked)
    });
    match packed? {
        // The other side has ended early, and tells why.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        packed => packed?,
    }
    report(unpacked??)
}

/// Says on standard error what was left out.
fn report(unpacked: Unpacked) -> anyhow::Result<()> {
    for name in unpacked.left_out {
        writeln!(io::stderr(), "kiai: {name}: a device node or fifo, which is not copied")?;
    }
    Ok(())
}

/// The path below the container's root; a relative one is below it, too.
fn rooted(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

/// Describes a source, and the path to archive: with `follow` the file behind a link. A link with a slash after it
/// is always followed.
fn describe(text: &str, follow: bool) -> io::Result<(Source, PathBuf)> {
    let path = Path::new(text);
    let content_only = text.ends_with("/.") || text == ".";
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{text}: {error}"));
    let real = if follow || text.ends_with('/') || content_only {
        fs::canonicalize(path).map_err(named)?
    } else {
        path.to_owned()
    };
    let metadata = fs::symlink_metadata(&real).map_err(named)?;
    let kind = if metadata.is_dir() { Kind::Directory } else { Kind::File };
    let name = match path.file_name() {
        Some(name) => Some(PathBuf::from(name)),
        None => fs::canonicalize(path).map_err(named)?.file_name().map(PathBuf::from),
    };
    Ok((Source { kind, name, content_only }, real))
}

fn archive_name(source: &Source) -> PathBuf {
    match &source.name {
        Some(name) if !source.content_only => name.clone(),
        _ => PathBuf::from("."),
    }
}

fn found(path: &Path) -> Found {
    match fs::metadata(path) {
        Ok(metadata) => Found::There(if metadata.is_dir() { Kind::Directory } else { Kind::File }),
        Err(_) => match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() || parent.is_dir() => Found::Missing,
            _ => Found::NoParent,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_told_apart() {
        let table = [
            ("web:/etc", Side::Container("web", "/etc")),
            ("web:etc", Side::Container("web", "etc")),
            ("-", Side::Stream),
            ("./a:b", Side::Host("./a:b")),
            ("/a:b", Side::Host("/a:b")),
            ("a/b:c", Side::Host("a/b:c")),
            ("file", Side::Host("file")),
        ];
        for (text, side) in table {
            assert_eq!(Side::parse(text), side, "{text}");
        }
    }

    #[test]
    fn a_source_is_described_by_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().display().to_string();
        fs::create_dir(format!("{top}/real")).unwrap();
        std::os::unix::fs::symlink("real", format!("{top}/link")).unwrap();
        let source = |text: &str, follow| describe(&format!("{top}/{text}"), follow).unwrap().0;
        let of = |kind, name: &str, content_only| Source { kind, name: Some(name.into()), content_only };
        assert_eq!(source("link", false), of(Kind::File, "link", false));
        assert_eq!(source("link", true), of(Kind::Directory, "link", false));
        assert_eq!(source("link/", false), of(Kind::Directory, "link", false));
        assert_eq!(source("real/.", false), of(Kind::Directory, "real", true));
        let error = describe(&format!("{top}/none"), false).unwrap_err().to_string();
        assert!(error.contains("none"), "{error}");
    }
}
