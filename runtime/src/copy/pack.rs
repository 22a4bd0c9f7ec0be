//! Archives a file or a directory. The tree may change meanwhile: a container that runs writes to it.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tar::Builder;
use tar::Header;
use tar::HeaderMode;

/// Archives `path` under the name `name`, and what is below it. `.` as the name leaves out the directory itself.
///
/// # Errors
/// A file cannot be read, or `out` not written. A file that vanishes while the archive is made is left out.
pub fn pack(path: &Path, name: &Path, out: impl Write) -> io::Result<()> {
    let mut builder = Builder::new(out);
    builder.follow_symlinks(false);
    append(&mut builder, path, name).map_err(|error| named(path, &error))?;
    builder.into_inner()?.flush()
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn append(builder: &mut Builder<impl Write>, path: &Path, name: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    let kind = metadata.file_type();
    if kind.is_symlink() {
        let mut header = header_of(&metadata);
        header.set_size(0);
        builder.append_link(&mut header, name, fs::read_link(path)?)
    } else if kind.is_dir() {
        if name != Path::new(".") {
            builder.append_dir(name, path)?;
        }
        append_entries(builder, path, name)
    } else if kind.is_file() {
        append_file(builder, path, name)
    } else if kind.is_socket() {
        // It is of no use without the process that listens.
        Ok(())
    } else {
        let mut header = header_of(&metadata);
        header.set_size(0);
        let device = metadata.rdev();
        header.set_device_major(rustix::fs::major(device))?;
        header.set_device_minor(rustix::fs::minor(device))?;
        builder.append_data(&mut header, name, io::empty())
    }
}

fn append_entries(builder: &mut Builder<impl Write>, path: &Path, name: &Path) -> io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        match append(builder, &path, &name.join(entry.file_name())) {
            // It was removed after the directory was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(named(&path, &error)),
            Ok(()) => {}
        }
    }
    Ok(())
}

fn append_file(builder: &mut Builder<impl Write>, path: &Path, name: &Path) -> io::Result<()> {
    // It may have become a fifo or a link since its kind was read.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(());
    }
    let mut header = header_of(&metadata);
    // As many bytes as the header says, also if the file grows or shrinks meanwhile.
    let content = file.chain(io::repeat(0)).take(metadata.len());
    builder.append_data(&mut header, name, content)
}

fn header_of(metadata: &fs::Metadata) -> Header {
    let mut header = Header::new_gnu();
    header.set_metadata_in_mode(metadata, HeaderMode::Complete);
    header
}
